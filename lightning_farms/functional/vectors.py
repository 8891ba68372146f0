"""Making and checking vectors with one number per layer."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def vector(values: Iterable[float]) -> Tensor:
    """Make a float64 vector (L,) on the CPU."""
    return torch.tensor(list(values), dtype=torch.float64, device="cpu")


def check_vector(name: str, value: Tensor, length: int | None = None) -> None:
    """Raise a ValueError unless the argument ``name`` has one dimension (of the given length)."""
    if value.ndim != 1:
        raise ValueError(f"Expected argument `{name}` to be a vector, but got shape {tuple(value.shape)}.")
    if length is not None and value.numel() != length:
        raise ValueError(f"Expected argument `{name}` to have {length} entries, but got {value.numel()}.")
