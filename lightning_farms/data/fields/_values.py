"""Checks of the values of a field, and what is wrong with them in words."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Survey(NamedTuple):
    """What was found in some frames of a trajectory.

    Args:
        faults: what is wrong, one for each channel and frame in which anything is wrong.
        extents: smallest and largest value of each channel.
        repeats: frames that are the same as the one before, in all channels that vary in time.
        digest: a number for each channel that identifies its values.
        numbers: channels that have a single number for each trajectory, by the file's layout.
    """

    faults: list["Fault"]
    extents: list[tuple[float, float]]
    repeats: list[int]
    digest: tuple[int, ...]
    numbers: frozenset[int] = frozenset()


class Marks(NamedTuple):
    """Values that stand for missing ones.

    Args:
        values: those that a dataset's attributes name, or that are too large to be meant.
        fill: what HDF5 gives for values that were never written, None if that is 0 or NaN.
    """

    values: tuple[float, ...] = ()
    fill: float | None = None


class Fault(NamedTuple):
    """Wrong values of one channel in one frame."""

    channel: str
    frame: int
    what: str


_NONE = Marks()
_STEPS = 2**10  # a spread of fewer float32 steps is reported
_SMALL = 1e-3  # for a spread this small, VRMSE is at least 15 % too low
_CODES = [
    float(np.float32(code))
    for code in (-999, -9999, -99999, 1e20, -1e20, 1e30, -1e30, 1e35, -1e34, 9.969209968386869e36)
]
"""Values that programs (CMIP, Ferret, netCDF, ...) write for missing ones, even without an attribute that says so."""


def as_single(field: Array) -> Array:
    """Return the field in float32; values beyond its range become infinite."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return field.astype(np.float32, copy=False)


def lost_digits(field: Array, single: Array) -> str:
    """Describe what float32, or VRMSE's constant, loses of a field's variation; usually the text is empty.

    Example:
        >>> field = 1e5 + np.linspace(0, 1, 4)
        >>> lost_digits(field, field.astype(np.float32)).split(":")[0]
        'varies by 1 about 1e+05, of which float32 keeps 128 steps'
    """
    wide = field if field.dtype.itemsize > single.dtype.itemsize else single
    low, high = float(wide.min()), float(wide.max())
    spread, step = high - low, 2.0 ** (math.frexp(max(abs(low), abs(high)))[1] - 24)
    if wide is field and 0 < spread < _STEPS * step:
        return (
            f"varies by {spread:.3g} about {high:.3g}, of which float32 keeps {spread / step:.0f} steps: subtract a "
            "constant from it, and write the differences to a new file"
        )
    if 0 < spread < _SMALL:
        return (
            f"varies by {spread:.3g} only, so that its VRMSE, which adds 1e-7 to the variance, comes out too low. "
            "Write it in smaller units to a new file, or use L2RE"
        )
    return ""


def faults(
    field: Array, single: Array, channel: str, frames: Sequence[int], *, positive: bool, marks: Marks = _NONE
) -> list[Fault]:
    """Find NaN, infinities, values beyond float32, missing ones and, if `positive`, those that are not above 0.

    The channel (T, X, Y) is given as stored and in float32. Each frame that has bad values gives one fault.
    """
    low, high = single.min(), single.max()
    missing = _missing(field, marks)
    if codes := _codes(low, high):  # codes in float64 are recognised in float32, too
        coded = np.isin(single, codes)
        missing = coded if missing is None else missing | coded
    if missing is None and np.isfinite(low) and np.isfinite(high) and not (positive and low <= 0):
        return []
    wrong = ~np.isfinite(single)
    if positive:
        wrong |= single <= 0
    if missing is not None:
        wrong |= missing
    places = np.flatnonzero(wrong.any((1, 2))).tolist()
    return [
        Fault(channel, frames[place], _kind(field[place], single[place], missing is not None and missing[place].any()))
        for place in places
    ]


def zero_frames(item: Array) -> list[int]:
    """Return the frames of (X, Y, T, C) that are 0 in all cells: if all of several are, or those after one that is not.

    Other zeros can be a flow: it may begin at rest, and a single frame may be all that was requested.
    """
    x, y, frames = item.shape[:3]
    if frames < 2 or any(item[place].any(-1).all() for place in ((x // 2, y // 2), (x // 3, y // 3))):
        return []
    zero = ~item.any((0, 1, 3))
    after = np.maximum.accumulate(~zero)
    return np.flatnonzero(zero if zero.all() else zero & after).tolist()


def _missing(field: Array, marks: Marks) -> Array | None:
    """Return a mask of the missing values, None if there are none."""
    if marks.fill is not None and len(field) > 1 and field.flat[0] == marks.fill and (field == marks.fill).all():
        return np.ones(field.shape, bool)
    if not marks.values:
        return None
    found = np.isin(field, np.asarray(marks.values).astype(field.dtype))
    return found if found.any() else None


def _codes(low: np.float32, high: np.float32) -> list[np.float32]:
    """Return the smallest or largest value if it is a code for missing ones; one field in millions has it by chance."""
    return [value for value in (low, high) if value in _CODES]


def _kind(field: Array, single: Array, is_missing: bool) -> str:
    if is_missing:
        return f"missing (marked by {field.flat[np.abs(field).argmax()]:.6g})"
    if np.isnan(field).any():
        return f"{int(np.isnan(field).sum())} NaN"
    if np.isinf(field).any():
        return f"{int(np.isinf(field).sum())} infinite"
    if np.isinf(single).any():
        return f"too large (up to {float(np.abs(field).max()):.3g}, beyond float32)"
    return "zero" if single.min() == 0 else "negative"
