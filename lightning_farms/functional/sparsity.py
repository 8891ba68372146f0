"""Allocation of sparsity: how much of each layer is pruned given the layers' alphas, exact in whole weights.

The arithmetic uses fractions, so that totals beyond 2^53 weights, and sparsities that no float holds, are exact.
"""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Hashable, Sequence
from fractions import Fraction
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_farms.functional._apportionment import fill_budget, give_rest
from lightning_farms.functional.vectors import check_vector, map_finite, vector

_OFFICIAL_CUT = {0.7: 0.99999}  # value to which the authors' program cuts ratios above 1, by target sparsity
_OFFICIAL_OTHER_CUT = 0.998


class LayerSparsity(NamedTuple):
    """How much of each layer is pruned.

    Args:
        ratios: (L,) fractions of the layers' weights before they are rounded to whole weights, float64.
        zeros: (L,) numbers of pruned weights, int64; their sum is the target, rounded to a whole weight.
    """

    ratios: Tensor
    zeros: Tensor


def linear_scores(alphas: Tensor, epsilon: float = 0.3, groups: Sequence[Hashable] | None = None) -> Tensor:
    r"""AlphaPruning's linear map from alpha to a layer's share in the pruning; the larger alpha, the more is pruned.

    .. math:: q_l = 1 - \epsilon + 2 \epsilon \frac{\alpha_l - \min \alpha}{\max \alpha - \min \alpha}

    A layer without a finite alpha gets 1 and does not influence other layers. All layers get 1 if their alphas are
    equal (to a relative 1e-9).

    Args:
        alphas: (L,), one PL_Alpha_Hill per layer, or any other figure that is large where much can be pruned.
        epsilon: Half the range of the scores, in [0, 1].
        groups: The block of each layer: the finite alphas of a block are replaced by their mean, so that its layers
            have the same score. None: each layer is a block of its own.

    Returns:
        (L,) scores in [1 - epsilon, 1 + epsilon], float64.

    Raises:
        ValueError: Not a vector, epsilon out of range, or another number of groups than of alphas.

    Example:
        >>> linear_scores(torch.tensor([2.0, 3.0, 4.0]), 0.2)
        tensor([0.8000, 1.0000, 1.2000], dtype=torch.float64)
        >>> linear_scores(torch.tensor([2.0, 3.0, 4.0]), 0.2, groups=["block 0", "block 0", "block 1"])
        tensor([0.8000, 0.8000, 1.2000], dtype=torch.float64)

    Reference:
        Lu et al., AlphaPruning, NeurIPS 2024, Section 3; Hu et al., ICML 2025, Section 4.2.
    """
    check_vector("alphas", alphas)
    if not 0 <= epsilon <= 1:
        raise ValueError(f"Expected argument `epsilon` to be in [0, 1], but got {epsilon}.")
    values = alphas.to(torch.float64)
    if groups is not None:
        values = _block_means(values, groups, values.isfinite())

    def linear(a: Tensor) -> Tensor:
        return 1 - epsilon + 2 * epsilon * (a - a.min()) / (a.max() - a.min())

    return map_finite(values, linear)


def allocate_sparsity(
    scores: Tensor, sizes: Tensor | Sequence[int], sparsity: float, *, floor: float = 0.0, cap: float = 1.0
) -> LayerSparsity:
    r"""Compute ratios in proportion to the scores, within bounds, that reach the sparsity exactly.

    .. math:: r_l = \operatorname{clip}(\lambda q_l, \text{floor}, \text{cap}), \quad
              \sum_l p_l r_l = S \sum_l p_l

    The left side is piecewise linear in :math:`\lambda`: its breakpoints are sorted, and the equation is solved on the
    piece that holds the target. The ratios are then rounded to :math:`\lfloor S \sum p + 1/2 \rfloor` whole weights in
    all: :math:`\lfloor r_l p_l \rfloor` of each layer, and one more of the layers with the largest remainders (of equal
    ones the earlier layer), never above :math:`\lfloor \text{cap} \cdot p_l \rfloor`. S, floor and cap are taken as
    the decimals as which they are printed.

    Args:
        scores: (L,) q, finite and not negative. A layer of score 0 is left at the floor.
        sizes: (L,) p, numbers of weights, positive.
        sparsity: S, the fraction of all weights to prune, in [floor, cap].
        floor: Least ratio of a layer.
        cap: Greatest ratio of a layer, at most 1.

    Returns:
        Ratios and numbers of weights of the layers, on the CPU.

    Raises:
        ValueError: An argument out of range, or a sparsity that the bounds and the layers of score 0 do not allow.

    Example:
        >>> allocate_sparsity(torch.tensor([0.4, 0.8, 1.2, 1.6]), [100, 100, 100, 100], 0.8).zeros
        tensor([ 40,  80, 100, 100])

    Reference:
        Lu et al., AlphaPruning, NeurIPS 2024, Section 3; their program cuts ratios above 1 and misses the target.
    """
    counts = _whole_sizes(sizes)
    target, lowest, highest = _decimals(sparsity, floor, cap)
    ratios = _exact_ratios(_exact_scores(scores, counts), counts, target, lowest, highest)
    wanted = [ratio * size for ratio, size in zip(ratios, counts, strict=True)]
    most = [int(highest * size) for size in counts]
    total = int(target * sum(counts) + Fraction(1, 2))
    if total > sum(most):
        raise ValueError(
            f"Expected arguments `sparsity` and `cap` to allow {total} zeros in whole weights, but got {sparsity} and "
            f"{cap}, at most {sum(most)} zeros."
        )
    zeros = give_rest(wanted, most, total)
    return LayerSparsity(vector(map(float, ratios)), torch.tensor(zeros, dtype=torch.int64, device="cpu"))


def allocate_n_of_m(
    scores: Tensor, sizes: Tensor | Sequence[int], sparsity: float, m: int, *, floor: float = 0.0, cap: float = 1.0
) -> Tensor:
    r"""Compute how many of every m inputs each layer loses, for n:m patterns in which every layer has its own n.

    The ratios of :func:`allocate_sparsity` are multiplied by m and rounded up or down, such that the total comes as
    near to the target as possible, but never above it. Of several solutions, the one that rounds up the largest
    remainders is taken.

    Args:
        scores: (L,) q, finite and not negative. A layer of score 0 is left at the floor.
        sizes: (L,) p, numbers of weights, positive multiples of m.
        sparsity: S, the fraction of all weights to prune, in [floor, cap]; taken as n / m if it is such a float, and
            otherwise as the decimal as which it is printed.
        m: Length of the pattern, at least 1.
        floor: Least ratio of a layer before it is rounded.
        cap: Greatest ratio of a layer, at most 1; of every m inputs at most floor(cap m) are pruned.

    Returns:
        (L,) n in [0, m], int64, on the CPU.

    Raises:
        ValueError: An argument out of range, or a sparsity that the bounds and the layers of score 0 do not allow.

    Example:
        >>> allocate_n_of_m(torch.tensor([0.5, 1.0, 1.5]), [400, 400, 400], 0.5, 4)
        tensor([1, 2, 3])
    """
    counts = _whole_sizes(sizes)
    if isinstance(m, bool) or not isinstance(m, int) or m < 1:
        raise ValueError(f"Expected argument `m` to be a positive integer, but got {m}.")
    if odd := [size for size in counts if size % m]:
        raise ValueError(f"Expected argument `sizes` to be multiples of m = {m}, but got {odd[0]}.")
    target, lowest, highest = _decimals(sparsity, floor, cap)
    if sparsity == (whole := round(sparsity * m)) / m:  # such as 1:3, of which the decimal falls short
        target = Fraction(whole, m)
    most = int(highest * m)
    if target * m > most:
        raise ValueError(
            f"Expected argument `sparsity` to be at most {most} of {m}, as `cap` = {cap} allows, but got {sparsity}."
        )
    ratios = _exact_ratios(_exact_scores(scores, counts), counts, target, lowest, Fraction(most, m))
    kept = [int(ratio * m) for ratio in ratios]
    units = [size // m for size in counts]
    budget = int(target * sum(counts)) - sum(n * unit for n, unit in zip(kept, units, strict=True))
    remainders = [ratio * m - n for ratio, n in zip(ratios, kept, strict=True)]
    raised = fill_budget(units, remainders, budget)
    return torch.tensor([n + more for n, more in zip(kept, raised, strict=True)], dtype=torch.int64, device="cpu")


def official_sparsity(
    alphas: Tensor,
    sizes: Tensor | Sequence[int],
    sparsity: float,
    epsilon: float,
    groups: Sequence[Hashable] | None = None,
) -> Tensor:
    r"""Compute the ratios of the authors' program, including its cuts and its NaN; for comparisons only.

    .. math:: r_l = q_l \frac{S \sum p}{\sum p q}

    with q as in :func:`linear_scores`, but NaN everywhere if one alpha is not finite or all are equal. A ratio above 1
    becomes 0.99999 (S = 0.7) or 0.998, and the rest is not given to other layers, so that the sparsity is missed.

    Args:
        alphas: (L,), one PL_Alpha_Hill per layer.
        sizes: (L,) p, numbers of weights, positive.
        sparsity: S, the fraction of all weights to prune.
        epsilon: Half the range of the scores, at least 0; above 1, ratios become negative.
        groups: The block of each layer: the alphas of a block are replaced by their mean. None: each layer is a block
            of its own.

    Returns:
        (L,) ratios, float64.

    Raises:
        ValueError: Not a vector, another number of sizes or groups than of alphas, or epsilon below 0.

    Example:
        >>> official_sparsity(torch.tensor([1.0, 2.0, 3.0, 4.0]), [100, 100, 100, 100], 0.8, 0.6)
        tensor([0.3200, 0.6400, 0.9600, 0.9980], dtype=torch.float64)

    Reference:
        The released programs of Lu et al. (2024) and Hu et al. (2025), ww_sparsity.
    """
    check_vector("alphas", alphas)
    if not 0 <= epsilon < float("inf"):
        raise ValueError(f"Expected argument `epsilon` to be finite and not negative, but got {epsilon}.")
    values = alphas.to(torch.float64)
    if groups is not None:
        values = _block_means(values, groups, torch.ones_like(values, dtype=torch.bool))
    weights = torch.tensor(_whole_sizes(sizes), dtype=torch.float64, device=values.device)
    check_vector("sizes", weights, values.numel())
    scores = 1 - epsilon + 2 * epsilon * (values - values.min()) / (values.max() - values.min())
    ratios = scores * (sparsity * weights.sum() / (weights * scores).sum())
    return ratios.where(~(ratios > 1), _OFFICIAL_CUT.get(sparsity, _OFFICIAL_OTHER_CUT))


def _block_means(values: Tensor, groups: Sequence[Hashable], chosen: Tensor) -> Tensor:
    """Replace each value by the mean of the chosen values of its block, NaN where there are none."""
    if len(groups) != values.numel():
        raise ValueError(f"Expected argument `groups` to have {values.numel()} entries, but got {len(groups)}.")
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    index = torch.tensor([numbers[group] for group in groups], dtype=torch.int64, device=values.device)
    sums = values.new_zeros(len(numbers)).index_add(0, index, values.where(chosen, 0.0))
    return (sums / values.new_zeros(len(numbers)).index_add(0, index, chosen.to(values)))[index]


def _whole_sizes(sizes: Tensor | Sequence[int]) -> list[int]:
    """Check the sizes of layers and convert them to integers."""
    listed = sizes.tolist() if isinstance(sizes, Tensor) else list(sizes)
    for size in listed:
        if isinstance(size, bool) or size != int(size) or size < 1:
            raise ValueError(f"Expected argument `sizes` to be positive whole numbers of weights, but got {size}.")
    return [int(size) for size in listed]


def _decimals(sparsity: float, floor: float, cap: float) -> tuple[Fraction, Fraction, Fraction]:
    """Check the sparsity and its bounds, and convert them to fractions exactly as they are printed."""
    if not 0 <= floor <= cap <= 1:
        raise ValueError(
            f"Expected arguments `floor` and `cap` to satisfy 0 <= floor <= cap <= 1, but got {floor} and {cap}."
        )
    if not floor <= sparsity <= cap:
        raise ValueError(f"Expected argument `sparsity` to be in [floor, cap] = [{floor}, {cap}], but got {sparsity}.")
    return Fraction(str(float(sparsity))), Fraction(str(float(floor))), Fraction(str(float(cap)))


def _exact_scores(scores: Tensor, sizes: list[int]) -> list[Fraction]:
    """Check the scores and convert them to fractions."""
    check_vector("scores", scores, len(sizes))
    values: list[float] = scores.to(torch.float64).tolist()
    for value in values:
        if not 0 <= value < float("inf"):
            raise ValueError(f"Expected argument `scores` to be finite and not negative, but got {value}.")
    return [Fraction(value) for value in values]


def _exact_ratios(
    scores: list[Fraction], sizes: list[int], target: Fraction, floor: Fraction, cap: Fraction
) -> list[Fraction]:
    """clip(lambda q, floor, cap) for the lambda that reaches the target; layers of equal score are taken together."""
    weights: Counter[Fraction] = Counter()
    for score, size in zip(scores, sizes, strict=True):
        weights[score] += size
    wanted = target * sum(sizes)

    def clipped(factor: Fraction, score: Fraction) -> Fraction:
        return min(max(factor * score, floor), cap)

    def reached(factor: Fraction) -> Fraction:
        return sum((size * clipped(factor, score) for score, size in weights.items()), Fraction(0))

    positive = [score for score in weights if score > 0]
    points = sorted({Fraction(0)} | {bound / score for score in positive for bound in (floor, cap)})
    if reached(points[-1]) < wanted:
        raise ValueError(
            f"Expected argument `sparsity` to leave the layers of score 0 at the floor, but got {float(target)}: the "
            f"others hold enough weights for {float(reached(points[-1]) / sum(sizes)):.6g} only. Lower it, or give all "
            "layers a score above 0 (of alphas: a smaller `epsilon`)."
        )
    above = bisect.bisect_left(points, wanted, key=reached)
    high = points[above]
    if reached(high) != wanted:
        low = points[above - 1]
        high = low + (high - low) * (wanted - reached(low)) / (reached(high) - reached(low))
    return [clipped(high, score) for score in scores]
