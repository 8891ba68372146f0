r"""What of a change between two stored weights stands clear of the rounding of both files.

An entry x of a type with machine epsilon e is off by up to half a unit in its last place,
:math:`u = e \, 2^{\lfloor \log_2 |x| \rfloor}`, with variance :math:`u^2 / 12`. A matrix of independent errors of
variances v_ij has squared singular values up to :math:`(\sqrt{\max_i \sum_j v_{ij}} + \sqrt{\max_j \sum_i v_{ij}})^2`,
its Marchenko-Pastur edge where all v_ij are equal. The type is the one that the numbers have been in: float32 all of
whose entries are numbers of bfloat16 was rounded to that.
"""

from __future__ import annotations

import torch
from torch import Tensor

_MARGIN = 1.05  # of the Tracy-Widom fluctuations of an edge
_COARSE = (torch.bfloat16, torch.float16)
_LARGEST = 4096  # rows up to which the ranks of matrices are found


def ranks_clear_of_rounding(change: Tensor, after: Tensor, before: Tensor) -> Tensor | None:
    """How many singular values of each matrix (P, m, n) of a change stand clear of the rounding of both stored types.

    None where that is not found: matrices without values, or too large.
    """
    if change.is_meta or min(change.shape[-2:]) > _LARGEST or not change.numel() or not bool(change.isfinite().all()):
        return None
    edges = _MARGIN * _edges(_variances(after) + _variances(before))
    counts = []
    for matrix, edge in zip(change, edges, strict=True):
        wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.mT
        wide = wide.to(torch.complex128 if wide.is_complex() else torch.float64)
        counts.append((torch.linalg.eigvalsh(wide @ wide.mH) > edge).sum())
    return torch.stack(counts)


def _edges(variances: Tensor) -> Tensor:
    """Upper edges (P,) of squared singular values, of errors of variances (P, m, n)."""
    return (variances.sum(-1).amax(-1).sqrt() + variances.sum(-2).amax(-1).sqrt()) ** 2


def _variances(stored: Tensor) -> Tensor:
    """Of the rounding error of every entry, float64; of a complex number, of both its parts."""
    if stored.is_complex():
        return _variances(stored.real) + _variances(stored.imag)
    info = torch.finfo(rounded_to(stored))
    _, exponent = torch.frexp(stored.to(torch.float64).abs().clamp(min=info.smallest_normal))  # |x| = f 2^e, f < 1
    units = torch.ldexp(torch.full_like(exponent, info.eps, dtype=torch.float64), exponent - 1)
    return units**2 / 12


def rounded_to(stored: Tensor) -> torch.dtype:
    """The coarsest type that has every number of a tensor, which may be stored in a finer one."""
    if stored.is_meta or not stored.numel() or not bool(stored.any()):
        return stored.dtype
    coarser = (dtype for dtype in _COARSE if dtype.itemsize < stored.dtype.itemsize)
    return next((dtype for dtype in coarser if torch.equal(stored.to(dtype).to(stored.dtype), stored)), stored.dtype)
