"""Tells which layers' alphas stand out."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from statistics import median
from types import MappingProxyType
from typing import Literal

SPREADS = 3.0
WELL_TRAINED = (2.0, 6.0)
SPREAD = (
    "more than 3 robust standard deviations (1.4826 times the median absolute deviation) from that of the median layer"
)
_RELATIVE = f"{SPREAD} and further than its standard error"
_ABSOLUTE = "outside 2 to 6, the range of well-trained layers by this fit"
RULE = f"{_RELATIVE}, or with --fit ks {_ABSOLUTE}."

_FEWEST = 5
_ROBUST = 1.4826  # standard deviation divided by median absolute deviation, of a normal distribution


def rule(fit: str) -> str:
    """Return the rule for outliers, in words.

    Args:
        fit: the fit that found alpha.

    Returns:
        The rule.
    """
    return f"{_RELATIVE}, or {_ABSOLUTE}" if fit == "ks" else _RELATIVE


def outliers(
    alphas: Mapping[str, float], *, fit: str, errors: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Literal["high", "low"]]:
    """Return layers whose alpha is further from the median than 3 robust standard deviations and its own error.

    Alphas of small layers scatter more; if their errors were ignored, they would stand out in every network that is
    otherwise even.

    With the fit ``"ks"``, alphas outside 2 to 6 stand out, too, as that fit commonly finds alphas of well-trained
    layers in this range. The other fits have no such range (the upper half of a random matrix's spectrum has alpha
    2.1).

    Args:
        alphas: alpha of each layer; those that are not finite are ignored. No median is taken of fewer than five.
        fit: the fit that found them.
        errors: standard errors of the alphas; a layer that is not listed counts as having none.

    Returns:
        {layer: the side on which it stands out}.

    Example:
        >>> outliers({"a": 1.8, "b": 1.9, "c": 1.85, "d": 1.8, "e": 1.88, "f": 2.6}, fit="hill")
        {'f': 'high'}
        >>> outliers({"a": 1.8, "b": 1.9, "c": 1.85, "d": 1.8, "e": 1.88, "f": 2.6}, fit="hill", errors={"f": 0.9})
        {}

    Reference:
        Martin, Peng and Mahoney, Predicting trends in the quality of state-of-the-art neural networks without access
        to training or testing data, Nature Communications 2021 (the range 2 to 6).
    """
    finite = {name: alpha for name, alpha in alphas.items() if math.isfinite(alpha)}
    low, high = WELL_TRAINED if fit == "ks" else (-math.inf, math.inf)
    middle, distance = _middle_and_distance(list(finite.values()))
    sides: dict[str, Literal["high", "low"]] = {}
    for name, alpha in finite.items():
        room = max(distance, errors.get(name, 0.0))
        if not max(low, middle - room) <= alpha <= min(high, middle + room):
            sides[name] = "high" if alpha > min(high, middle + room) else "low"
    return sides


def _middle_and_distance(alphas: list[float]) -> tuple[float, float]:
    """Return the median of alphas, and 3 robust standard deviations, which are infinite if they tell nothing."""
    if len(alphas) < _FEWEST:
        return 0.0, math.inf
    middle = median(alphas)
    spread = robust_deviation(alpha - middle for alpha in alphas)
    return middle, SPREADS * spread if spread > 0 else math.inf


def robust_deviation(distances: Iterable[float]) -> float:
    """Estimate the standard deviation of distances from a median by the median of their absolute values."""
    return _ROBUST * median(map(abs, distances))
