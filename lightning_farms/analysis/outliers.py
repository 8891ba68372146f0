"""Which layers' alphas stand out."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from types import MappingProxyType
from typing import Literal

SPREADS = 3.0
WELL_TRAINED = (2.0, 6.0)
SPREAD = "more than 3 robust standard deviations (1.4826 times the median absolute deviation) from the median layer"
_RELATIVE = f"{SPREAD} and further than its standard error"
_ABSOLUTE = "outside 2 to 6, where that fit's alpha of well-trained layers lies"
RULE = f"{_RELATIVE}; with --fit ks also {_ABSOLUTE}."

_FEWEST = 5
_ROBUST = 1.4826  # standard deviation by median absolute deviation of a normal distribution


def rule(fit: str) -> str:
    """What makes an outlier, in words.

    Args:
        fit: how alpha was found.

    Returns:
        The rule.
    """
    return f"{_RELATIVE}, or {_ABSOLUTE}" if fit == "ks" else _RELATIVE


def outliers(
    alphas: Mapping[str, float], *, fit: str, errors: Mapping[str, float] = MappingProxyType({})
) -> dict[str, Literal["high", "low"]]:
    """Layers whose alpha stands out: further from the median than 3 robust standard deviations and its own error.

    Small layers' alphas scatter more; without the error they would stand out in every network that is otherwise even.

    With the fit ``"ks"``, also those outside 2 to 6, which is where that fit's alpha of well-trained layers is
    commonly found; the other fits have no such range (the upper half of a random matrix's spectrum has alpha 2.1).

    Args:
        alphas: of each layer; those that are not finite are passed over. Of fewer than five no median is taken.
        fit: how they were found.
        errors: standard errors of the alphas; a layer that is not among them has none.

    Returns:
        {layer: on which side}.

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
    """Their median, and 3 robust standard deviations; infinite where these tell nothing."""
    if len(alphas) < _FEWEST:
        return 0.0, math.inf
    middle = median(alphas)
    spread = _ROBUST * median(abs(alpha - middle) for alpha in alphas)
    return middle, SPREADS * spread if spread > 0 else math.inf
