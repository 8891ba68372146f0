"""Trajectories that HDF5 makes up: values never written, or in a missing file, are read as the fill value.

HDF5 raises no error for either. A dataset's storage shows both exactly, without reading any value.
"""

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from lightning_farms.data.fields._selections import Box, Coverage, Intervals, boxes, places

MadeUp = dict[int, str]
"""{trajectory: what is missing of it}"""


def made_up(dataset: h5py.Dataset, axis: int) -> MadeUp:
    """Return the trajectories, along an axis, of which some values are not stored anywhere."""
    if not dataset.size or dataset.id.get_create_plist().get_layout() == h5py.h5d.COMPACT:
        return {}
    if dataset.is_virtual:
        return _unmapped(dataset, axis)
    if dataset.external:
        return _without_raw_file(dataset)
    if dataset.chunks is not None:
        return _without_chunks(dataset, axis)
    return _all(dataset.shape[axis], "was never written") if dataset.id.get_storage_size() == 0 else {}


def _all(count: int, reason: str) -> MadeUp:
    return dict.fromkeys(range(count), reason)


def _without_chunks(dataset: h5py.Dataset, axis: int) -> MadeUp:
    sizes = dataset.chunks
    grid = tuple(-(-size // chunk) for size, chunk in zip(dataset.shape, sizes, strict=True))
    if dataset.id.get_num_chunks() == math.prod(grid):
        return {}
    stored = np.zeros(grid, bool)

    def note(chunk: Any) -> None:  # noqa: ANN401
        stored[tuple(at // size for at, size in zip(chunk.chunk_offset, sizes, strict=True))] = True

    dataset.id.chunk_iter(note)
    lacking = ~stored.all(axis=tuple(other for other in range(len(grid)) if other != axis))
    rows = np.repeat(lacking, sizes[axis])[: dataset.shape[axis]].nonzero()[0].tolist()
    return dict.fromkeys(rows, "was never written")


def _without_raw_file(dataset: h5py.Dataset) -> MadeUp:
    """Check raw files beside the HDF5 file: what is missing of one that is too short is read as the fill value."""
    left = dataset.nbytes
    for name, offset, size in dataset.external:
        needed = left if size == h5py.h5f.UNLIMITED else min(size, left)
        found = existing(Path(dataset.file.filename), os.fsdecode(name), "HDF5_EXTFILE_PREFIX")
        if found is None or found.stat().st_size < offset + needed:
            state = "is missing" if found is None else "is cut short"
            return _all(dataset.shape[0], f"lies in the file {os.fsdecode(name)}, which {state}")
        left -= needed
    return {}


def _unmapped(dataset: h5py.Dataset, axis: int) -> MadeUp:
    """Return the trajectories of a virtual dataset that its sources do not fill."""
    parts = list(_parts(dataset))
    coverage = Coverage(dataset.shape, axis, [box for _, box, _ in parts])
    reasons: MadeUp = {}
    for name, box, source in parts:
        rows = places(box[axis])
        lost = _lost(dataset, name, source, rows, axis)
        coverage.fill(box, [row for row in rows if row not in lost])
        reasons = {**lost, **reasons}
    return {row: reasons.get(row, "has no source in the virtual dataset") for row in coverage.lacking()}


def _parts(dataset: h5py.Dataset) -> Iterator[tuple[str, Box, Any]]:
    """Yield each part's file name, box in the virtual dataset, and source; each numbered file is a part of its own."""
    for source in dataset.virtual_sources():
        for box in boxes(source.vspace, dataset.shape):
            if "%b" not in source.file_name:
                yield source.file_name, box, source
                continue
            many = max(range(len(box)), key=lambda axis: len(_blocks(source.vspace, box, axis)))
            for number, block in enumerate(_blocks(source.vspace, box, many)):
                yield source.file_name.replace("%b", str(number)), [*box[:many], [block], *box[many + 1 :]], source


def _blocks(space: Any, box: Box, axis: int) -> Intervals:  # noqa: ANN401
    """Return the blocks of an axis, each of which is filled by one numbered file."""
    if not space.is_regular_hyperslab():
        return box[axis]
    block = max(1, space.get_regular_hyperslab()[3][axis])
    return [(first, min(first + block, end)) for start, end in box[axis] for first in range(start, end, block)]


def _lost(dataset: h5py.Dataset, name: str, source: Any, rows: list[int], axis: int) -> MadeUp:  # noqa: ANN401
    """Return those of the rows that a source should fill but does not."""
    if name == ".":
        return _lost_in(dataset.file, name, source, rows, axis)
    path = existing(Path(dataset.file.filename), name, "HDF5_VDS_PREFIX")
    if path is None:
        return dict.fromkeys(rows, f"lies in the file {name}, which is missing")
    try:
        with h5py.File(path, "r") as file:
            return _lost_in(file, name, source, rows, axis)
    except OSError as error:
        return dict.fromkeys(rows, f"lies in the file {name}, which cannot be read ({error})")


def _lost_in(file: h5py.File, name: str, source: Any, rows: list[int], axis: int) -> MadeUp:  # noqa: ANN401
    found = file.get(source.dset_name)
    place = f"lies in dataset `{source.dset_name}` of {name}, which"
    if not isinstance(found, h5py.Dataset):
        return dict.fromkeys(rows, f"{place} is missing")
    taken = boxes(source.src_space, found.shape) if _has_axes(source.src_space, found) else []
    ends = [[end for box in taken for _, end in box[other]] for other in range(found.ndim)]
    needed = 0 if "%b" in source.file_name else source.vspace.get_select_npoints()
    if not taken or needed > found.size or any(max(e) > n for e, n in zip(ends, found.shape, strict=True)):
        return dict.fromkeys(rows, f"{place} is too small, of shape {found.shape}")
    lost = made_up(found, min(axis, found.ndim - 1))
    own = [row for box in taken for row in places(box[min(axis, found.ndim - 1)])]
    if len(own) != len(rows):  # of another form, so that rows cannot be matched
        return dict.fromkeys(rows, f"{place} has parts that were never written") if lost else {}
    return {row: lost[number] for row, number in zip(rows, own, strict=True) if number in lost}


def _has_axes(space: Any, dataset: h5py.Dataset) -> bool:  # noqa: ANN401
    return bool(space.get_select_type() == h5py.h5s.SEL_ALL) or len(space.shape) == dataset.ndim


def existing(path: Path, name: str, prefix: str) -> Path | None:
    """Return the file that HDF5 would find under a name given in another file, None if there is none."""
    folders = [os.environ.get(prefix, "").replace("${ORIGIN}", str(path.parent)), path.parent, "."]
    return next((place for place in (Path(str(folder)) / name for folder in folders) if place.is_file()), None)


def sources(dataset: h5py.Dataset) -> set[Path]:
    """Return the other files that hold values of a dataset, as far as they exist."""
    path = Path(dataset.file.filename)
    names = (
        [(name, "HDF5_VDS_PREFIX") for name in dict.fromkeys(part[0] for part in _parts(dataset))]
        if (dataset.is_virtual)
        else []
    )
    names += [(os.fsdecode(name), "HDF5_EXTFILE_PREFIX") for name, _, _ in dataset.external or ()]
    found = {existing(path, name, prefix) for name, prefix in names if name != "."}
    return {each for each in found if each is not None}
