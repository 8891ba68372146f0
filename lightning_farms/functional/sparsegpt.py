"""SparseGPT: weights are removed column by column, and the weights to the right are adapted to make up for it."""

from __future__ import annotations

import math
from itertools import accumulate, pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_farms.functional._smallest_entries import smallest_entries, smallest_of_every
from lightning_farms.functional.pruning_masks import Amount, Counts, NofM, check_weight, checked_amount, number_of_zeros

_MOST_CONDITION = 1e5  # largest condition of a Hessian in float32; beyond it rounding decides which weights go
_POWER_STEPS = 8
_MOST_DAMPING = 10.0  # a Hessian that needs more is not a second moment
_LEAST_DAMPING = 1e-4  # tried after 0


class Reconstruction(NamedTuple):
    """A pruned matrix, and details of how it was computed.

    Args:
        weight: (R, C), zero where it is pruned, changed elsewhere; of the same type as the original weight.
        mask: (R, C), bool, True where the weight stays.
        damping: Amount added to the Hessian's diagonal, as a fraction of its mean; more than asked for if a
            factorisation failed.
        dtype: Precision in which the Hessian was factorised.
        dead: Number of inputs that are always zero.
    """

    weight: Tensor
    mask: Tensor
    damping: float
    dtype: torch.dtype
    dead: int


def sparsegpt(
    weight: Tensor,
    hessian: Tensor,
    amount: Amount,
    *,
    column_block: int = 128,
    damping: float = 0.01,
    counts: Counts = "exact",
) -> Reconstruction:
    r"""Prune a matrix so that its outputs on the calibration tokens change little, and adapt the weights that stay.

    With :math:`U^\top U = (H + d\, \overline{H_{jj}}\, I)^{-1}`, U upper triangular, the columns are processed from
    left to right. In each block of columns the weights of least

    .. math:: W_{ij}^2 / U_{jj}^2

    are chosen (for a pattern, among each output's next m). Then, column by column, where :math:`W_{ij}` is pruned,

    .. math:: W_{i,j'} \leftarrow W_{i,j'} - \frac{W_{ij}}{U_{jj}} U_{j,j'}, \quad j' > j.

    An input that is always zero (a zero on the Hessian's diagonal) changes no output: its weights are pruned first, and
    count towards the amount.

    Args:
        weight: (R, C), outputs by inputs, of any floating type.
        hessian: (C, C), sum or mean of :math:`x x^\top` over the calibration tokens, of any scale; symmetric.
        amount: An integer: the number of zeros. A float: the fraction r of zeros, :math:`\lfloor r R C + 1/2 \rfloor`
            of them. They are shared among blocks of columns in proportion to the inputs that are not always zero. A
            pattern: n of every m consecutive inputs.
        column_block: Number of columns whose zeros are chosen together, a multiple of the pattern's m.
        damping: d, not negative. If the factorisation fails in float64, it grows by factors of 10, up to 10.
        counts: "exact", or "official" for as many zeros as in the authors' program: in each block of columns, the
            weights up to the one at position int(r R columns) from the least, this one and equal ones included, and
            all weights of inputs that are always zero, even beyond the pattern.

    Returns:
        The matrix, the mask, the damping and the precision used (float32 if the damped Hessian's condition is below
        1e5 and it was not given in float64), and the number of inputs that are always zero.

    Raises:
        ValueError: Weights that are not a matrix, a Hessian of another shape, values that are not finite, a negative
            diagonal, an amount, block or damping out of range, a Hessian that is not positive semi-definite, or weights
            that overflow their type.

    Example:
        >>> sparsegpt(torch.tensor([[1.0, 2.0]]), torch.tensor([[2.0, 1.0], [1.0, 2.0]]), 1, damping=0.0).weight
        tensor([[0.0000, 2.5000]])

    Reference:
        Frantar and Alistarh, SparseGPT, ICML 2023, Algorithm 1.
    """
    check_weight(weight)
    amount = checked_amount(amount, weight, counts)
    _check_hessian(hessian, weight.shape[1])
    _check_options(column_block, damping, amount)
    dead = hessian.diagonal() == 0
    root, used = _damped_root(hessian, dead, damping)
    dense = weight.detach().to(torch.promote_types(weight.dtype, torch.float32))
    if counts == "official":
        dense = dense.where(~dead, 0.0)
    change, mask = _prune_blocks(dense, root.to(dense), dead, amount, column_block, counts)
    if counts == "official":
        mask &= ~dead
    adapted = (dense - change).to(weight.dtype) * mask
    if not bool(adapted.isfinite().all()):
        raise ValueError(
            f"Expected argument `weight` to be of a type that holds the updated weights, but some overflow "
            f"{weight.dtype}. Use torch.bfloat16 or torch.float32."
        )
    return Reconstruction(adapted, mask, used, root.dtype, int(dead.sum()))


def _prune_blocks(
    dense: Tensor, root: Tensor, dead: Tensor, amount: Amount, column_block: int, counts: Counts
) -> tuple[Tensor, Tensor]:
    """The change to subtract from a matrix, and the mask of the weights that stay.

    With M = U^-1, the changes V of the columns so far alter a block's columns by -V M U: U is never needed as a whole.
    """
    change, mask = torch.zeros_like(dense), torch.ones_like(dense, dtype=torch.bool)
    quotas = None if isinstance(amount, NofM) or counts == "official" else _quotas(amount, dense, dead, column_block)
    for number, start in enumerate(range(0, dense.shape[1], column_block)):
        inside = slice(start, start + column_block)
        corner = root[inside, inside]
        inverse = torch.linalg.solve_triangular(corner, torch.eye(len(corner)).to(corner), upper=True)
        block = dense[:, inside] + change[:, :start] @ root[:start, inside] @ inverse
        first = dead[inside] if counts == "exact" else torch.zeros_like(dead[inside])
        if isinstance(amount, NofM):
            block, gone = _prune_pattern(block, inverse, first, amount)
        else:
            scores = _scores(block, inverse.diagonal(), first)
            gone = _up_to(scores, amount) if quotas is None else smallest_entries(scores, quotas[number])
            block = _prune_chosen(block, inverse, gone)
        change[:, inside] = dense[:, inside] - block
        mask[:, inside] = ~gone
    return change, mask


def _prune_chosen(block: Tensor, inverse: Tensor, gone: Tensor) -> Tensor:
    """Remove the chosen weights column by column, adapting the columns to the right."""
    values, removed = block.T.contiguous(), gone.T.contiguous()  # rows of memory are columns of the weight
    for place in range(len(values)):
        _remove(values, place, inverse, removed[place])
    return values.T


def _prune_pattern(block: Tensor, inverse: Tensor, first: Tensor, pattern: NofM) -> tuple[Tensor, Tensor]:
    """Like `_prune_chosen`, but choose in every m columns once those before are pruned; also returns the choice."""
    values, removed = block.T.contiguous(), torch.zeros_like(block.T, dtype=torch.bool)
    n, m = pattern
    for place in range(len(values)):
        if place % m == 0:
            group = slice(place, place + m)
            scores = _scores(values[group].T, inverse.diagonal()[group], first[group])
            removed[group] = smallest_of_every(scores, n, m).T
        _remove(values, place, inverse, removed[place])
    return values.T, removed.T


def _remove(values: Tensor, place: int, inverse: Tensor, removed: Tensor) -> None:
    """Set weights of one column to 0 and adapt the later columns to make up for it, in place."""
    errors = values[place].where(removed, 0.0) / inverse[place, place]
    values[place].masked_fill_(removed, 0.0)
    values[place + 1 :].addr_(inverse[place, place + 1 :], errors, alpha=-1)


def _scores(block: Tensor, diagonal: Tensor, first: Tensor) -> Tensor:
    """Cost of removing each weight; negative, and ordered by magnitude, for the columns that are to be pruned first."""
    squares = block.square()
    return torch.where(first, -squares.reciprocal(), squares / diagonal.square())


def _up_to(scores: Tensor, ratio: float) -> Tensor:
    """Mark the weights that the authors' program prunes."""
    position = min(int(scores.numel() * ratio), scores.numel() - 1)
    return scores <= scores.flatten().kthvalue(position + 1).values


def _quotas(amount: float, dense: Tensor, dead: Tensor, column_block: int) -> list[int]:
    """Numbers of zeros of the blocks of columns: first for dead inputs, then in proportion to the other inputs."""
    rows, total = dense.shape[0], number_of_zeros(amount, dense.numel())
    dying = [int(part.sum()) for part in dead.split(column_block)]
    living = [len(part) - count for part, count in zip(dead.split(column_block), dying, strict=True)]
    if total <= rows * sum(dying):
        return _split(total, dying)
    rest = _split(total - rows * sum(dying), living)
    return [rows * count + more for count, more in zip(dying, rest, strict=True)]


def _split(total: int, shares: list[int]) -> list[int]:
    """Split a whole number in proportion to the shares; each running total is the nearest whole number to its due."""
    whole = max(sum(shares), 1)
    ends = [(2 * total * share + whole) // (2 * whole) for share in accumulate(shares)]
    return [end - before for before, end in pairwise([0, *ends])]


def _damped_root(hessian: Tensor, dead: Tensor, damping: float) -> tuple[Tensor, float]:
    """Upper triangular M with M M^T = the damped Hessian, hence U = M^-1, and the damping that was needed."""
    living = hessian.diagonal()[~dead].to(torch.float64)
    mean = float(living.mean()) if living.numel() else 1.0
    if hessian.dtype != torch.float64 and _condition(hessian, mean, damping) < _MOST_CONDITION:
        root = _upper_root(hessian, dead, mean, damping, torch.float32)
        if root is not None:
            return root, damping
    used = damping
    while (root := _upper_root(hessian, dead, mean, used, torch.float64)) is None:
        used = max(used * 10, _LEAST_DAMPING)
        if used > _MOST_DAMPING:
            raise ValueError(
                f"Expected argument `hessian` to be positive semi-definite, but got one without a Cholesky "
                f"factor, even with {used / 10:g} of its mean diagonal added."
            )
    return root, used


def _condition(hessian: Tensor, mean: float, damping: float) -> float:
    """Bound on the condition of the damped Hessian: its largest eigenvalue, by power iteration, by the damping."""
    matrix = hessian.to(torch.float32)
    vector = matrix.diagonal().clone()
    for _ in range(_POWER_STEPS):
        vector = matrix @ (vector / vector.norm())
    return float(vector.norm()) / mean / damping + 1 if damping > 0 else math.inf


def _upper_root(hessian: Tensor, dead: Tensor, mean: float, damping: float, dtype: torch.dtype) -> Tensor | None:
    """The upper triangular factor, or None if the damped Hessian is not positive definite in this precision."""
    damped = hessian.flip(0, 1).to(dtype)
    damped.diagonal().copy_((hessian.diagonal().to(dtype).where(~dead, mean) + damping * mean).flip(0))
    lower, failed = torch.linalg.cholesky_ex(damped)
    del damped  # it is as large as the result
    return None if bool(failed) else lower.flip(0, 1)


def _check_hessian(hessian: Tensor, columns: int) -> None:
    """Raise a ValueError unless the Hessian is a finite matrix of the inputs without a negative diagonal entry."""
    if hessian.shape != (columns, columns) or not hessian.is_floating_point():
        raise ValueError(
            f"Expected argument `hessian` to be a floating-point matrix of shape ({columns}, {columns}), but got "
            f"shape {tuple(hessian.shape)} of {hessian.dtype}."
        )
    if not bool(hessian.isfinite().all()):
        raise ValueError("Expected argument `hessian` to be finite, but got NaN or infinite values.")
    if bool((hessian.diagonal() < 0).any()):
        raise ValueError(
            "Expected argument `hessian` to have no negative number on its diagonal, as second moments, but got one."
        )


def _check_options(column_block: int, damping: float, amount: Amount) -> None:
    """Raise a ValueError unless the options of the algorithm are in range."""
    if column_block < 1 or (isinstance(amount, NofM) and column_block % amount.m):
        raise ValueError(
            f"Expected argument `column_block` to be positive, and a multiple of a pattern's m, but got {column_block}."
        )
    if not 0 <= damping < math.inf:
        raise ValueError(f"Expected argument `damping` to be finite and not negative, but got {damping}.")
