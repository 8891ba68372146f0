"""Summary of alpha over the layers of a model in a few numbers."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from statistics import fmean, pstdev

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)


@dataclass(frozen=True)
class Summary:
    """Distribution of a number over layers.

    Attributes:
        layers: number of layers.
        mean: mean over the layers; NaN if there are none.
        std: standard deviation over the layers (divided by their number).
        quantiles: {probability: quantile}, interpolated linearly.
    """

    layers: int
    mean: float
    std: float
    quantiles: dict[float, float]

    def __str__(self) -> str:
        quantiles = "  ".join(f"{100 * p:.0f}% {value:.3f}" for p, value in self.quantiles.items())
        return f"mean {self.mean:.3f}  std {self.std:.3f}  quantiles {quantiles}"


def summarize(values: Iterable[float]) -> Summary:
    """Summarise numbers, ignoring those that are not finite.

    Args:
        values: any numbers.

    Returns:
        The summary; NaN if there is no finite number.

    Example:
        >>> str(summarize([1.0, 2.0, 3.0, float("nan")]))
        'mean 2.000  std 0.816  quantiles 5% 1.100  25% 1.500  50% 2.000  75% 2.500  95% 2.900'
    """
    finite = sorted(value for value in values if math.isfinite(value))
    if not finite:
        return Summary(0, math.nan, math.nan, dict.fromkeys(QUANTILES, math.nan))
    return Summary(len(finite), fmean(finite), pstdev(finite), {p: _quantile(finite, p) for p in QUANTILES})


def _quantile(ascending: list[float], probability: float) -> float:
    position = probability * (len(ascending) - 1)
    below = int(position)
    above = min(below + 1, len(ascending) - 1)
    return ascending[below] + (position - below) * (ascending[above] - ascending[below])
