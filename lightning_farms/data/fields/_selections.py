"""Which places of a dataset an HDF5 selection takes, and whether several selections cover all of them."""

from collections.abc import Iterable, Sequence
from typing import Any

import h5py
import numpy as np

Intervals = list[tuple[int, int]]
Box = list[Intervals]
"""For each axis, the intervals [first, end) that are taken; the box is every combination of these over all axes."""


def boxes(space: Any, shape: Sequence[int]) -> list[Box]:  # noqa: ANN401
    """Return the boxes that a selection consists of; "all" and unlimited selections end with the shape."""
    kind = space.get_select_type()
    if kind == h5py.h5s.SEL_ALL:
        return [[[(0, size)] for size in shape]]
    if kind != h5py.h5s.SEL_HYPERSLABS:
        return []
    if not space.is_regular_hyperslab():
        return [
            [[(first, last + 1)] for first, last in zip(*ends, strict=True)]
            for ends in space.get_select_hyper_blocklist().tolist()
        ]
    axes = zip(*space.get_regular_hyperslab(), shape, strict=True)
    return [[_intervals(*axis) for axis in axes]]


def _intervals(start: int, stride: int, count: int, block: int, size: int) -> Intervals:
    block = min(block, size - start)
    count = min(count, -(-(size - start) // stride))
    if stride == block or count == 1:
        return [(start, start + count * block)]
    return [(start + number * stride, start + number * stride + block) for number in range(count)]


def places(intervals: Intervals) -> list[int]:
    """Return the places in intervals, one by one."""
    return [place for first, end in intervals for place in range(first, end)]


class Coverage:
    """Record of the rows along an axis that are filled, when several selections fill parts of the other axes."""

    def __init__(self, shape: Sequence[int], axis: int, selections: Iterable[Box]) -> None:
        self._others = [other for other in range(len(shape)) if other != axis]
        self._axis = axis
        ends = {other: {0, shape[other]} for other in self._others}
        for box in selections:
            for other in self._others:
                ends[other] |= {end for interval in box[other] for end in interval}
        self._cells = {other: {end: cell for cell, end in enumerate(sorted(ends[other]))} for other in self._others}
        self._filled = np.zeros((shape[axis], *(len(self._cells[other]) - 1 for other in self._others)), bool)

    def fill(self, box: Box, rows: Sequence[int]) -> None:
        """Record that a selection fills these rows."""
        cells = [
            [cell for first, end in box[other] for cell in range(self._cells[other][first], self._cells[other][end])]
            for other in self._others
        ]
        self._filled[np.ix_(rows, *cells)] = True

    def lacking(self) -> list[int]:
        """Return the rows of which a part is not filled."""
        rows: list[int] = np.flatnonzero(~self._filled.reshape(len(self._filled), -1).all(axis=1)).tolist()
        return rows
