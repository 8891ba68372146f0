"""Range checks of arguments, each with its one wording."""

from __future__ import annotations

import math


def check_at_least(least: int, **values: int) -> None:
    """Refuse numbers that are too small, naming the first."""
    for name, value in values.items():
        if value < least:
            raise ValueError(f"Expected argument `{name}` to be at least {least}, but got {value}.")


def check_integer_at_least(least: int, **values: object) -> None:
    """Refuse what is no integer or too small, naming the first."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < least:
            raise ValueError(f"Expected argument `{name}` to be an integer of at least {least}, but got {value!r}.")


def check_amplitude(**values: float) -> None:
    """Refuse negative, infinite and missing numbers, naming the first."""
    for name, value in values.items():
        if not 0 <= value < math.inf:
            raise ValueError(f"Expected argument `{name}` to be at least 0 and finite, but got {value}.")


def check_share(kind: str, **values: float) -> None:
    """Refuse numbers outside (0, 1), [0, 1) or (0, 1], as `kind` says, naming the first."""
    for name, value in values.items():
        at_ends = (value == 0 and kind[0] == "[") or (value == 1 and kind[-1] == "]")
        if not (0 < value < 1 or at_ends):
            raise ValueError(f"Expected argument `{name}` to be in {kind}, but got {value}.")
