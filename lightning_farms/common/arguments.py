"""Range checks of arguments, which are given by name; an error is raised for the first that fails."""

from __future__ import annotations

import math
from typing import Any


def check_at_least(least: float, **arguments: float) -> None:
    """Raise an error for numbers smaller than ``least``."""
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be at least {least}, but got {value}.")


def check_whole(**arguments: object) -> None:
    """Raise an error for values that are not integers (bools included)."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"Expected argument `{name}` to be an integer, but got {value!r}.")


def check_integers(least: int, **arguments: Any) -> None:  # noqa: ANN401
    """Raise an error for values that are not integers (bools included), or are smaller than ``least``."""
    check_whole(**arguments)
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be an integer of at least {least}, but got {value}.")


def check_share(**arguments: float) -> None:
    """Raise an error for numbers that are not in [0, 1)."""
    for name, value in arguments.items():
        if not 0 <= value < 1:
            raise ValueError(f"Expected argument `{name}` to be in [0, 1), but got {value}.")


def check_not_negative(**arguments: float) -> None:
    """Raise an error for numbers that are negative or not finite."""
    for name, value in arguments.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"Expected argument `{name}` to be at least 0 and finite, but got {value}.")
