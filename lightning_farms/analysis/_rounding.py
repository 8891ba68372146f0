r"""Which part of a change between two stored weights stands clear of the rounding of both files.

An entry x of a type with machine epsilon e is off by up to half a unit in its last place,
:math:`u = e \, 2^{\lfloor \log_2 |x| \rfloor}`, with variance :math:`u^2 / 12`. A matrix of independent errors of
variances v_ij has squared singular values up to :math:`(\sqrt{\max_i \sum_j v_{ij}} + \sqrt{\max_j \sum_i v_{ij}})^2`,
which is its Marchenko-Pastur edge if all v_ij are equal. The type is the one that the numbers were rounded to: a
float32 tensor all of whose entries are bfloat16 numbers was rounded to bfloat16. For weights that were unpacked, u is
the step of the packed numbers' grid at each entry.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_farms.analysis.weights.layer_weight import LayerWeight

_MARGIN = 1.05  # factor for the Tracy-Widom fluctuations of an edge
_COARSE = (torch.bfloat16, torch.float16)
_NEIGHBOURS = 16  # no scale of a packed format applies to fewer numbers
_OF_SUMS = 8  # units in the last place by which a product of factors is off: 2.2 were seen for rank 16, 6.8 for 256
_LARGEST = 4096  # rows up to which the ranks of matrices are found


def ranks_clear_of_rounding(change: Tensor, *both: LayerWeight) -> Tensor | None:
    """Count the singular values of each matrix (P, m, n) of a change that stand clear of both weights' rounding.

    None for matrices that have no values, are not finite, or are too large.
    """
    if change.is_meta or min(change.shape[-2:]) > _LARGEST or not change.numel() or not bool(change.isfinite().all()):
        return None
    types = [rounded_to(weight.matrices) for weight in both]
    of_both = [_variances(weight, dtype).to(change.device) for weight, dtype in zip(both, types, strict=True)]
    edges = _MARGIN * _edges(torch.stack([*of_both, _own_variances(change, types)]).sum(0))
    counts = []
    for matrix, edge in zip(change, edges, strict=True):
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
        wide = wide.to(torch.complex128 if wide.is_complex() else torch.float64)
        counts.append((torch.linalg.eigvalsh(wide @ wide.mH) > edge).sum())
    return torch.stack(counts)


def _own_variances(change: Tensor, types: Sequence[torch.dtype]) -> Tensor:
    """Variances of the change's own rounding before it was added: to the coarser type, and of sums of products."""
    coarser = max(types, key=lambda dtype: torch.finfo(dtype).eps)
    summed = torch.float64 if coarser == torch.float64 else torch.float32
    return _variances_of_type(change, coarser) + _OF_SUMS**2 * _variances_of_type(change, summed)


def _edges(variances: Tensor) -> Tensor:
    """Return the upper edges (P,) of the squared singular values of errors that have variances (P, m, n)."""
    return (variances.sum(-1).amax(-1).sqrt() + variances.sum(-2).amax(-1).sqrt()) ** 2


def _variances(weight: LayerWeight, dtype: torch.dtype) -> Tensor:
    """Return the variance of every entry's rounding error, in float64."""
    if weight.steps is not None:
        return weight.steps().to(torch.float64) ** 2 / 12
    return _variances_of_type(weight.matrices, dtype)


def _variances_of_type(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the variance of rounding every entry to a type; for complex numbers the sum over both parts."""
    if stored.is_complex():
        return _variances_of_type(stored.real, dtype) + _variances_of_type(stored.imag, dtype)
    return units(stored, dtype) ** 2 / 12


def units(stored: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the unit in the last place of every entry as a number of a type, in float64."""
    info = torch.finfo(dtype)
    _, exponent = torch.frexp(stored.to(torch.float64).abs().clamp(min=info.smallest_normal))  # |x| = f 2^e, f < 1
    return torch.ldexp(torch.full_like(exponent, info.eps, dtype=torch.float64), exponent - 1)


def steps_of_grid(unpacked: Tensor) -> Tensor:
    """Estimate the steps of a grid from the numbers on it; its scales are unknown, and run along rows or columns.

    A step is the least distance between two numbers among 16 neighbours. Of the two directions the larger step counts,
    as neighbours that each have their own scale come closer to each other.
    """
    return torch.maximum(_gaps(unpacked), _gaps(unpacked.mT).mT)


def _gaps(unpacked: Tensor) -> Tensor:
    numbers = unpacked.to(torch.float32)
    length = numbers.shape[-1]
    padded = torch.nn.functional.pad(numbers.reshape(-1, length), (0, -length % _NEIGHBOURS), value=math.nan)
    runs = padded.unflatten(1, (-1, _NEIGHBOURS))
    ordered = runs.sort(-1).values  # NaN comes last
    gaps = ordered.diff(dim=-1)
    fuzz = 1e-5 * runs.abs().nan_to_num().amax(-1, keepdim=True)
    least = torch.where(gaps > fuzz, gaps, math.inf).amin(-1, keepdim=True)
    steps = torch.where(least.isfinite(), least, 0).expand_as(runs)
    return steps.reshape(len(padded), -1)[:, :length].reshape(numbers.shape)


def rounded_to(stored: Tensor) -> torch.dtype:
    """Return the coarsest type that holds every number of a tensor, or both parts of it; its own type may be finer."""
    if stored.is_complex():
        stored = torch.view_as_real(stored.resolve_conj())
    if stored.is_meta or not stored.numel() or not bool(stored.any()):
        return stored.dtype
    coarser = (dtype for dtype in _COARSE if dtype.itemsize < stored.dtype.itemsize)
    return next((dtype for dtype in coarser if torch.equal(stored.to(dtype).to(stored.dtype), stored)), stored.dtype)
