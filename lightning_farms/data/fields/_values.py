"""What is wrong with the values of a field."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

Array = np.ndarray[Any, Any]


class Survey(NamedTuple):
    """What some frames of a trajectory are like.

    Args:
        faults: what is wrong, one for each channel and frame that has anything wrong.
        extents: smallest and largest value of each channel.
        repeats: frames that are the same as the one before, in all channels that vary in time.
        digest: tells the values from others.
        numbers: channels of which a trajectory has one number, by the file's layout.
    """

    faults: list["Fault"]
    extents: list[tuple[float, float]]
    repeats: list[int]
    digest: tuple[int, ...]
    numbers: frozenset[int] = frozenset()


class Marks(NamedTuple):
    """What stands for values that are missing.

    Args:
        values: those that a dataset's attributes name, or that are too large to be meant.
        fill: what HDF5 gives for values that were never written, None where that is 0.
    """

    values: tuple[float, ...] = ()
    fill: float | None = None


class Fault(NamedTuple):
    """Wrong values of one channel in one frame."""

    channel: str
    frame: int
    what: str


_NONE = Marks()
_STEPS = 2**10  # a spread of fewer float32 numbers is told
_SMALL = 1e-3  # of a spread that small, VRMSE is at least 15 % too low
_CODES = [
    float(np.float32(code))
    for code in (-999, -9999, -99999, 1e20, -1e20, 1e30, -1e30, 1e35, -1e34, 9.969209968386869e36)
]
"""What programs write where a value is missing (CMIP, Ferret, netCDF, ...), also without an attribute that says so."""


def as_single(field: Array) -> Array:
    """The field in float32; what is beyond its range becomes infinite."""
    with np.errstate(over="ignore", invalid="ignore", under="ignore"):
        return field.astype(np.float32, copy=False)


def lost_digits(field: Array, single: Array) -> str:
    """What is lost of a field's variation, in float32 and by VRMSE's constant; nothing as a rule.

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
            "constant from it, and write the rest to a new file"
        )
    if 0 < spread < _SMALL:
        return (
            f"varies by {spread:.3g} alone: VRMSE adds 1e-7 to its variance, so that it comes out too low. Write it in "
            "smaller units to a new file, or look at L2RE"
        )
    return ""


def faults(
    field: Array, single: Array, channel: str, frames: Sequence[int], *, positive: bool, marks: Marks = _NONE
) -> list[Fault]:
    """NaN, infinities, values beyond float32, missing ones and, of a density or pressure, those that are not above 0.

    Of one channel (T, X, Y): as stored, and in float32. One fault for each frame that has any.
    """
    low, high = single.min(), single.max()
    missing = _missing(field, marks)
    if codes := _codes(low, high):  # of float64, too, they are told in float32
        coded = np.isin(single, codes)
        missing = coded if missing is None else missing | coded
    if missing is None and np.isfinite(low) and np.isfinite(high) and not (positive and low <= 0):
        return []
    wrong = ~np.isfinite(single) | (single <= 0 if positive else False)
    if missing is not None:
        wrong |= missing
    places = np.flatnonzero(wrong.any((1, 2))).tolist()
    return [
        Fault(channel, frames[place], _kind(field[place], single[place], missing is not None and missing[place].any()))
        for place in places
    ]


def zero_frames(item: Array) -> list[int]:
    """Frames of (X, Y, T, C) that are 0 at all cells, where that is no flow: all of several, or after one that is not.

    A flow may begin at rest, and one frame may be all that was asked for.
    """
    x, y, frames = item.shape[:3]
    if frames < 2 or any(item[place].any(-1).all() for place in ((x // 2, y // 2), (x // 3, y // 3))):
        return []
    zero = ~item.any((0, 1, 3))
    after = np.maximum.accumulate(~zero)
    return np.flatnonzero(zero if zero.all() else zero & after).tolist()


def _missing(field: Array, marks: Marks) -> Array | None:
    """Where values are missing; None where none is."""
    if marks.fill is not None and len(field) > 1 and field.flat[0] == marks.fill and (field == marks.fill).all():
        return np.ones(field.shape, bool)
    if not marks.values:
        return None
    found = np.isin(field, np.asarray(marks.values).astype(field.dtype))
    return found if found.any() else None


def _codes(low: np.float32, high: np.float32) -> list[np.float32]:
    """A smallest or largest value that is a code for missing ones: by chance, one in millions of fields has it."""
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
