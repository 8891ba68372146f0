"""What is wrong with the values of a field."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Fault(NamedTuple):
    """Wrong values of one channel in one frame."""

    channel: str
    frame: int
    what: str


def as_single(field: Array) -> Array:
    """The field in float32; what is beyond its range becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return field.astype(np.float32, copy=False)


def faults(field: Array, single: Array, channel: str, frames: Sequence[int], *, positive: bool) -> list[Fault]:
    """NaN, infinities, values beyond float32 and, of a density or pressure, values that are not above 0.

    Of one channel (T, X, Y): as stored, and in float32. One fault for each frame that has any.
    """
    low, high = single.min(), single.max()
    if np.isfinite(low) and np.isfinite(high) and not (positive and low <= 0):
        return []
    wrong = ~np.isfinite(single) | (single <= 0 if positive else False)
    places = np.flatnonzero(wrong.any((1, 2))).tolist()
    return [Fault(channel, frames[place], _kind(field[place], single[place])) for place in places]


def _kind(field: Array, single: Array) -> str:
    if np.isnan(field).any():
        return f"{int(np.isnan(field).sum())} NaN"
    if np.isinf(field).any():
        return f"{int(np.isinf(field).sum())} infinite"
    if np.isinf(single).any():
        return f"too large (up to {float(np.abs(field).max()):.3g}, beyond float32)"
    return "zero" if single.min() == 0 else "negative"
