"""Norms of matrices' rows, and where in memory matrices begin."""

from __future__ import annotations

import torch
from torch import Tensor

_BOUNDARY = 64  # bytes, a cache line; PyTorch aligns to it what it allocates on the CPU


def on_boundary(matrices: Tensor) -> bool:
    """Whether they begin where a cache line does: elsewhere the bits of products may be others."""
    return matrices.data_ptr() % _BOUNDARY == 0


def row_norms(matrices: Tensor, out: Tensor | None = None) -> Tensor:
    """(..., m): of (..., m, n), in the real type of what is given, or that of ``out``; no roots of complex numbers."""
    real, dtype = as_real(matrices.resolve_conj()), None if out is None else out.dtype
    norms: Tensor = torch.linalg.vector_norm(real, dim=-1, dtype=dtype, out=out)
    return norms


def as_real(matrices: Tensor) -> Tensor:
    """Complex numbers (..., n) as pairs of real ones (..., 2 n)."""
    return torch.view_as_real(matrices).flatten(-2) if matrices.is_complex() else matrices
