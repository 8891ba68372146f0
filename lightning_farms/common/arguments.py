"""Checks of arguments that several rooms make."""

from __future__ import annotations


def check_at_least(least: float, **values: float) -> None:
    """Refuse the first of some arguments, given by name, that is too small.

    Raises:
        ValueError: naming it.

    Example:
        >>> check_at_least(1, batch_size=8, stride=0)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `stride` to be at least 1, but got 0.
    """
    for name, value in values.items():
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be at least {least}, but got {value}.")


def check_integers(least: int, **values: object) -> None:
    """Refuse the first of some arguments, given by name, that is no integer (a bool is none), or too small a one.

    Raises:
        TypeError: naming the one that is not an integer.
        ValueError: naming the one that is too small.

    Example:
        >>> check_integers(1, depth=0)
        Traceback (most recent call last):
        ...
        ValueError: Expected argument `depth` to be an integer of at least 1, but got 0.
    """
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"Expected argument `{name}` to be an integer, but got {value!r}.")
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be an integer of at least {least}, but got {value}.")
