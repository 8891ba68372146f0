"""Checks of arguments that several of the functions make."""

from __future__ import annotations

from torch import Tensor


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
