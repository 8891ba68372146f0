"""Norms of matrix rows, and the alignment of matrices in memory."""

from __future__ import annotations

import torch
from torch import Tensor

_BOUNDARY = 64  # bytes of a cache line; PyTorch aligns its CPU allocations to it


def on_boundary(matrices: Tensor) -> bool:
    """Whether the matrices begin at a cache line; elsewhere the bits of products may differ."""
    return matrices.data_ptr() % _BOUNDARY == 0


def row_norms(matrices: Tensor, out: Tensor | None = None) -> Tensor:
    """Row norms (..., m) of (..., m, n), in the input's real type or that of ``out``; complex entries need no roots."""
    real, dtype = as_real(matrices.resolve_conj()), None if out is None else out.dtype
    norms: Tensor = torch.linalg.vector_norm(real, dim=-1, dtype=dtype, out=out)
    return norms


def as_real(matrices: Tensor) -> Tensor:
    """View complex numbers (..., n) as pairs of real ones (..., 2 n)."""
    return torch.view_as_real(matrices).flatten(-2) if matrices.is_complex() else matrices
