"""Range checks of arguments, given by name: the first that does not fit is refused."""

from __future__ import annotations

import math


def check_at_least(least: float, **arguments: float) -> None:
    """Refuse numbers smaller than ``least``."""
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be at least {least}, but got {value}.")


def check_integers(least: int, **arguments: object) -> None:
    """Refuse what is no integer (a bool is none), and smaller ones than ``least``."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"Expected argument `{name}` to be an integer, but got {value!r}.")
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be an integer of at least {least}, but got {value}.")


def check_share(**arguments: float) -> None:
    """Refuse numbers that are not in [0, 1)."""
    for name, value in arguments.items():
        if not 0 <= value < 1:
            raise ValueError(f"Expected argument `{name}` to be in [0, 1), but got {value}.")


def check_not_negative(**arguments: float) -> None:
    """Refuse numbers that are negative or not finite."""
    for name, value in arguments.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"Expected argument `{name}` to be at least 0 and finite, but got {value}.")
