"""Vectors with one number per layer: made, checked and mapped."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

_EQUAL = 1e-9  # relative; alphas that differ by less would be blown up to a map's full range


def vector(values: Iterable[float]) -> Tensor:
    """Make a float64 vector (L,) on the CPU."""
    return torch.tensor(list(values), dtype=torch.float64, device="cpu")


def check_vector(name: str, value: Tensor, length: int | None = None) -> None:
    """Raise a ValueError unless the argument ``name`` has one dimension (of the given length)."""
    if value.ndim != 1:
        raise ValueError(f"Expected argument `{name}` to be a vector, but got shape {tuple(value.shape)}.")
    if length is not None and value.numel() != length:
        raise ValueError(f"Expected argument `{name}` to have {length} entries, but got {value.numel()}.")


def map_finite(alphas: Tensor, map_alphas: Callable[[Tensor], Tensor]) -> Tensor:
    """Map the finite alphas of (L,) in float64; 1 for the other layers, and for all if the finite ones are equal."""
    check_vector("alphas", alphas)
    values = alphas.to(torch.float64)
    finite = values.isfinite()
    chosen = values[finite]
    mapped = torch.ones_like(values)
    if chosen.numel() > 0 and bool(chosen.max() - chosen.min() > _EQUAL * chosen.abs().max()):
        mapped[finite] = map_alphas(chosen)
    return mapped
