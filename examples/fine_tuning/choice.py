"""Statistics of a study: the choice of rates, paired differences and intervals."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_STEPS = 2000  # intervals of Simpson's rule


class Interval(NamedTuple):
    """A mean and its confidence interval by Student's t.

    Attributes:
        mean: mean of the values.
        half: half the interval's width; NaN for fewer than two values.
        count: number of values.
    """

    mean: float
    half: float
    count: int


def t_quantile(probability: float, degrees: int) -> float:
    r"""Quantile of Student's t: the t with :math:`\int_{-\infty}^t f_\nu = p`, by Simpson's rule and bisection.

    Args:
        probability: p, in [1/2, 1).
        degrees: degrees of freedom, at least 1.

    Returns:
        t, to 6 digits.

    Example:
        >>> round(t_quantile(0.975, 4), 4)
        2.7764
    """
    scale = math.exp(math.lgamma((degrees + 1) / 2) - math.lgamma(degrees / 2)) / math.sqrt(degrees)
    scale /= math.sqrt(math.pi)

    def mass(angle: float) -> float:  # with t = sqrt(nu) tan(angle), the density is cos^(nu - 1), without long tails
        width = angle / _STEPS
        weights = (1 if i in (0, _STEPS) else 4 if i % 2 else 2 for i in range(_STEPS + 1))
        total = sum(weight * math.cos(i * width) ** (degrees - 1) for i, weight in enumerate(weights))
        return scale * math.sqrt(degrees) * total * width / 3

    low, high = 0.0, math.pi / 2
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if mass(middle) < probability - 0.5 else (low, middle)
    return math.sqrt(degrees) * math.tan((low + high) / 2)


def interval(values: Sequence[float], level: float = 0.95) -> Interval:
    r"""Return the t-interval of a mean, :math:`\bar x \pm t\, s / \sqrt n`.

    Args:
        values: a sample, not empty.
        level: confidence level, in (0, 1).

    Returns:
        The interval.

    Example:
        >>> interval([1.0, 2.0, 3.0]).half.__round__(3)
        2.484
    """
    count, mean = len(values), statistics.mean(values)
    if count < 2:
        return Interval(mean, math.nan, count)
    return Interval(mean, t_quantile((1 + level) / 2, count - 1) * statistics.stdev(values) / math.sqrt(count), count)


def paired(values: Mapping[int, float], baseline: Mapping[int, float]) -> list[float]:
    """Return the differences to a baseline for the seeds that both have.

    Example:
        >>> paired({1: 3.0, 2: 5.0}, {2: 4.0, 3: 1.0})
        [1.0]
    """
    return [value - baseline[seed] for seed, value in values.items() if seed in baseline]


def rates_to_try(errors: Mapping[float, float], grid: Sequence[float], extensions: int) -> list[float]:
    """Return the rates whose validation errors are still needed before one can be chosen.

    These are those of the grid and, while the lowest error is at an end, the next rate beyond it, by the ratio of the
    grid's last (or first) two rates.

    Args:
        errors: {rate: validation error} so far; a rate that failed has an infinite one.
        grid: the rates to try first, ascending.
        extensions: number of rates beyond each end, at most.

    Returns:
        Rates without an error yet; none if one can be chosen.

    Example:
        >>> rates_to_try({1.0: 0.3, 2.0: 0.2}, [1.0, 2.0], 1)
        [4.0]
        >>> rates_to_try({1.0: 0.3, 2.0: 0.2, 4.0: 0.25}, [1.0, 2.0], 1)
        []
    """
    missing = [rate for rate in grid if rate not in errors]
    if missing or len(grid) < 2:
        return missing
    tried = list(grid)
    for _ in range(2 * extensions):
        best = min(tried, key=lambda rate: _comparable(errors[rate]))
        above = sum(rate > grid[-1] for rate in tried)
        if best == tried[-1] and above < extensions:
            tried.append(_rounded(tried[-1] * grid[-1] / grid[-2]))
        elif best == tried[0] and len(tried) - above - len(grid) < extensions:
            tried.insert(0, _rounded(tried[0] * grid[0] / grid[1]))
        missing = [rate for rate in tried if rate not in errors]
        if missing:
            return missing
    return []


def chosen_rate(errors: Mapping[float, float]) -> float:
    """Return the rate with the lowest validation error, and the smaller rate if errors are equal.

    Args:
        errors: {rate: validation error}, not empty.

    Returns:
        The rate.

    Example:
        >>> chosen_rate({2.0: 0.2, 1.0: 0.2, 4.0: float("nan")})
        1.0
    """
    return min(sorted(errors), key=lambda rate: _comparable(errors[rate]))


def _comparable(error: float) -> float:
    return math.inf if math.isnan(error) else error


def _rounded(rate: float) -> float:
    """Round a rate to the digits that the file of runs keeps."""
    return float(f"{rate:g}")
