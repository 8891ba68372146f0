"""Checks of arguments that several rooms make."""

import math


def check_at_least(least: int, **arguments: int) -> None:
    """Refuse the first of some numbers, given by name, that is smaller than `least`."""
    for name, value in arguments.items():
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be at least {least}, but got {value}.")


def check_share(**arguments: float) -> None:
    """Refuse the first of some numbers, given by name, that is not in [0, 1)."""
    for name, value in arguments.items():
        if not 0 <= value < 1:
            raise ValueError(f"Expected argument `{name}` to be in [0, 1), but got {value}.")


def check_amplitude(**arguments: float) -> None:
    """Refuse the first of some numbers, given by name, that is negative or not finite."""
    for name, value in arguments.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"Expected argument `{name}` to be at least 0 and finite, but got {value}.")


def check_integers(least: int, **arguments: object) -> None:
    """Refuse the first of some arguments, given by name, that is no integer (a bool is none) or too small."""
    for name, value in arguments.items():
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"Expected argument `{name}` to be an integer, but got {value!r}.")
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be an integer of at least {least}, but got {value}.")
