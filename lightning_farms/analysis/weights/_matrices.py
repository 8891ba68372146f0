"""Conversion of stored tensors to stacks of matrices."""

from __future__ import annotations

import torch
from torch import Tensor

PROJECTIONS = ("q", "k", "v")
"""Queries, keys and values, in the order in which ``nn.MultiheadAttention`` packs them."""

LSTM_GATES = ("i", "f", "g", "o")
GRU_GATES = ("r", "z", "n")
"""Gates of recurrent layers, in the order in which PyTorch stores them one below the other."""


def stack(matrices: Tensor) -> Tensor:
    """Flatten (..., m, n) to (P, m, n), as a view if possible."""
    if matrices.ndim < 2:
        raise ValueError(f"Expected argument `matrices` to be (..., m, n), but got shape {tuple(matrices.shape)}.")
    return matrices.flatten(0, -3) if matrices.ndim > 2 else matrices.unsqueeze(0)


def convolution_matrices(weight: Tensor, groups: int) -> Tensor:
    """Turn (O, I / groups, *kernel) into (groups * positions, O / groups, I / groups)."""
    return _kernel_positions(_per_group(weight, groups))


def transposed_convolution_matrices(weight: Tensor, groups: int) -> Tensor:
    """Turn (I, O / groups, *kernel) into (groups * positions, O / groups, I / groups)."""
    return _kernel_positions(_per_group(weight, groups).transpose(1, 2))


def complex_matrices(pair: Tensor) -> Tensor:
    """Turn real and imaginary parts (2, ...) into complex numbers (...), complex64 or complex128."""
    real, imaginary = pair.to(torch.promote_types(pair.dtype, torch.float32))
    return torch.complex(real, imaginary)


def _per_group(weight: Tensor, groups: int) -> Tensor:
    """Turn (channels, ...) into (groups, channels / groups, ...)."""
    per_group: Tensor = weight.unflatten(0, (groups, weight.shape[0] // groups))
    return per_group


def _kernel_positions(weight: Tensor) -> Tensor:
    """Turn (groups, O, I, *kernel) into (groups * positions, O, I)."""
    return weight.flatten(3).permute(0, 3, 1, 2).flatten(0, 1)
