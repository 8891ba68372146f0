"""Vectors of a number for each layer: made, and checked."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def vector(values: Iterable[float]) -> Tensor:
    """A float64 vector on the CPU.

    Args:
        values: its entries.

    Returns:
        (L,).
    """
    return torch.tensor(list(values), dtype=torch.float64, device="cpu")


def check_vector(name: str, value: Tensor, length: int | None = None) -> None:
    """Raise a ValueError unless ``value`` has one dimension (of the given length).

    Args:
        name: of the argument.
        value: the argument.
        length: number of entries that it must have.

    Raises:
        ValueError: it has not.
    """
    if value.ndim != 1:
        raise ValueError(f"Expected argument `{name}` to be a vector, but got shape {tuple(value.shape)}.")
    if length is not None and value.numel() != length:
        raise ValueError(f"Expected argument `{name}` to have {length} entries, but got {value.numel()}.")
