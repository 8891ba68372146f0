"""Says in words which layers stand out from the network's other layers, and what that may mean."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from statistics import NormalDist, median
from typing import TYPE_CHECKING, NamedTuple

from lightning_farms.analysis.outliers import robust_deviation
from lightning_farms.common.texts import listed

if TYPE_CHECKING:
    from lightning_farms.analysis.layer_spectrum import LayerSpectrum

_FEWEST = 4  # layers; among fewer none stands out
_CHANCE = 0.05  # probability that a layer is named in a network whose layers do not differ
_SMALL_SAMPLE = 3.0  # the median absolute deviation of n layers may be too small by this divided by n
_LEAST_DIFFERENCE = 0.1  # relative difference of alpha - 1
_MOST = 0.25  # share of the layers; if more differ, they are of several kinds, and none stands out
_REPULSION = 0.5  # scatter divided by standard error; it is 0.1 to 0.45 for random matrices, whose eigenvalues repel
_SMALL = 16  # rows or columns; the eigenvalues of smaller matrices are nearly independent
_LONG_TAILS = 2.0  # factor for the long tails of the alphas that scans find
_HALF = (0.45, 0.56)  # share of the eigenvalues in the tail of a Hill fit; a scan's tail may have any size
_MOSTLY = 0.9  # share of the layers that have such tails if no scan has chosen xmin

_MEANING = {
    "low": (
        "heavier tails than the other layers",
        "Heavier tails go with more training (Hu et al., ICML 2025; Martin and Mahoney, JMLR 2021); a few very large "
        "eigenvalues have the same effect (see --without_outliers).",
    ),
    "high": (
        "lighter tails than the other layers",
        "Lighter tails go with less training (Hu et al., ICML 2025; Martin and Mahoney, JMLR 2021), as of layers that "
        "were frozen, initialised anew, or given a lower learning rate.",
    ),
}


class _Distinct(NamedTuple):
    """A layer that stands out, the median of its group, and its distance from that in standard deviations."""

    row: LayerSpectrum
    median: float
    deviation: float


def guidance(rows: Iterable[LayerSpectrum], *, of_change: bool = False) -> list[str]:
    r"""Say which layers stand out, in which direction, and what it may mean; nothing if none does.

    Let :math:`u = \ln(\alpha - 1)`, whose standard error is :math:`e = se(\alpha) / (\alpha - 1)` (or that of the
    bootstrap interval, if it was asked for). A layer stands out if its distance
    :math:`|u - \mathrm{median}\, u| / \sqrt{s^2 + (k e)^2}` exceeds what the largest of as many normal numbers exceeds
    in one of 20 networks. s is the robust scatter of u over the layers. k is 1/2 (the eigenvalues of random matrices
    repel each other, which makes alpha scatter by 0.1 to 0.45 of e), 1 for matrices of fewer than 16 rows or columns,
    and, if a scan has chosen xmin, twice the robust scatter of u / e, at least 2. Layers are compared with those whose
    windows have about the same aspect ratio (with FARMS: all), and products of LoRA pairs with each other; a comparison
    takes at least four layers. Layers whose alpha - 1 differs by less than a tenth do not stand out, and none does if
    more than a quarter would.

    Args:
        rows: rows of a report.
        of_change: whether the weights are changes from a base; if so, only the direction is said.

    Returns:
        Up to two lines.

    Example:
        >>> from lightning_farms.analysis import LayerSpectrum
        >>> rows = [
        ...     LayerSpectrum(f"blocks.{i}", "linear", (256, 256), eigenvalue_count=256, tail_size=128,
        ...         alpha=1.4 if i == 3 else 2.1, standard_error=0.04 if i == 3 else 0.1)
        ...     for i in range(8)
        ... ]
        >>> print(guidance(rows)[0])  # doctest: +ELLIPSIS
        Heavier tails than the other layers: blocks.3 (alpha 1.40, median 2.10). Heavier tails go with more training ...
        >>> guidance(rows[4:])
        []

    Reference:
        Hu et al., Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias, ICML 2025; Martin and Mahoney,
        Implicit Self-Regularization in Deep Neural Networks, Journal of Machine Learning Research 22 (2021).
    """
    known = [row for row in rows if row.alpha > 1 and 0 < _error(row) < math.inf]
    groups: dict[tuple[int, bool], list[LayerSpectrum]] = defaultdict(list)
    for row in known:
        elongation = round(2 * abs(math.log2(row.aspect_ratio))) if row.aspect_ratio > 0 else 0
        groups[elongation, row.kind == "low-rank product"].append(row)
    found = [each for group in groups.values() for each in _standing_out(group, len(known))]
    return list(_sentences(found, of_change)) if len(found) <= max(1, _MOST * len(known)) else []


def _sentences(found: list[_Distinct], of_change: bool) -> Iterator[str]:
    for side, (what, meaning) in _MEANING.items():
        chosen = sorted(
            (each for each in found if (each.deviation < 0) == (side == "low")), key=_strength, reverse=True
        )
        if chosen:
            names = listed([f"{row.name} (alpha {row.alpha:.2f}, median {middle:.2f})" for row, middle, _ in chosen])
            rest = "" if of_change else f" {meaning} This is a hint where to look, not a fault by itself."
            yield f"{what.capitalize()}: {names}.{rest}"


def _strength(each: _Distinct) -> float:
    return abs(each.deviation)


def _standing_out(rows: list[LayerSpectrum], layers: int) -> Iterator[_Distinct]:
    """Yield the layers that stand out of a group, in a network of this many layers."""
    if len(rows) < _FEWEST:
        return
    middle = median(row.alpha for row in rows)
    logs = [math.log((row.alpha - 1) / (middle - 1)) for row in rows]
    spread = _robust(logs)
    by_scan = 0.0
    if sum(map(_is_upper_half, rows)) < _MOSTLY * len(rows):
        by_scan = _LONG_TAILS * max(1.0, _robust([log / _error(row) for log, row in zip(logs, rows, strict=True)]))
    most = NormalDist().inv_cdf(1 - _CHANCE / 2 / layers)
    for row, log in zip(rows, logs, strict=True):
        deviation = log / math.hypot(spread, _error(row) * _scatter(row, by_scan))
        if abs(deviation) > most and abs(math.expm1(log)) >= _LEAST_DIFFERENCE:
            yield _Distinct(row, middle, deviation)


def _is_upper_half(row: LayerSpectrum) -> bool:
    """Whether the tail is the upper half of the eigenvalues, as in a Hill fit."""
    return _HALF[0] * row.eigenvalue_count <= row.tail_size <= _HALF[1] * row.eigenvalue_count


def _scatter(row: LayerSpectrum, by_scan: float) -> float:
    """Return the scatter of u by chance alone over its standard error; ``by_scan`` is 0 if no scan has chosen xmin."""
    if by_scan:
        return by_scan
    sizes = row.shape[:2] if "convolution" in row.kind else row.shape[-2:]
    return _REPULSION if min(sizes) >= _SMALL else 1.0


def _robust(distances: list[float]) -> float:
    """Estimate the standard deviation of distances from a median, for a sample of any size."""
    return robust_deviation(distances) * (1 + _SMALL_SAMPLE / len(distances))


def _error(row: LayerSpectrum) -> float:
    """Return the standard error of ln(alpha - 1)."""
    low, high = row.interval
    return max(row.alpha - low, high - row.alpha) / 1.96 / (row.alpha - 1)
