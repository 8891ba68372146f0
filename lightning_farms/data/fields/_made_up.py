"""Trajectories that HDF5 makes up: what was never written, or lies in a missing file, reads as the fill value.

HDF5 gives no error for either. A dataset's storage tells it exactly, without reading any value.
"""

import math
import os
from pathlib import Path
from typing import Any

import h5py
import numpy as np

MadeUp = dict[int, str]
"""{trajectory: what is missing of it}"""


def made_up(dataset: h5py.Dataset, axis: int) -> MadeUp:
    """The trajectories, along an axis, of which some values are not stored anywhere."""
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
    """Values kept in raw files beside the HDF5 file: of a file that is too short, the rest reads as the fill value."""
    for name, offset, size in dataset.external:
        found = _existing(Path(dataset.file.filename), os.fsdecode(name), "HDF5_EXTFILE_PREFIX")
        needed = offset + (dataset.nbytes if size == h5py.h5f.UNLIMITED else size)
        if found is None or (len(dataset.external) == 1 and found.stat().st_size < needed):
            state = "is missing" if found is None else "is cut short"
            return _all(dataset.shape[0], f"lies in the file {os.fsdecode(name)}, which {state}")
    return {}


def _unmapped(dataset: h5py.Dataset, axis: int) -> MadeUp:
    """Trajectories of a virtual dataset that its sources do not fill."""
    count = dataset.shape[axis]
    filled = np.zeros(count)
    reasons: MadeUp = {}
    for source in dataset.virtual_sources():
        first, last = (bound[axis] for bound in source.vspace.get_select_bounds())
        rows = range(first, min(last + 1, count))
        lost = _lost(dataset, source, axis)
        whole = lost.get(-1)
        for row in rows:
            reason = whole if whole is not None else lost.get(row)
            if reason is None:
                filled[row] += source.vspace.get_select_npoints() / max(len(rows), 1)
            else:
                reasons.setdefault(row, reason)
    lacking = np.flatnonzero(filled < dataset.size / count * (1 - 1e-9)).tolist()
    return {row: reasons.get(row, "has no source in the virtual dataset") for row in lacking}


def _lost(dataset: h5py.Dataset, source: Any, axis: int) -> MadeUp:  # noqa: ANN401
    """What a source does not have of the rows that it should fill; -1 stands for all of them."""
    if source.file_name == ".":
        return _lost_in(dataset.file, source, axis)
    path = _existing(Path(dataset.file.filename), source.file_name, "HDF5_VDS_PREFIX")
    if path is None:
        return {-1: f"lies in the file {source.file_name}, which is missing"}
    try:
        with h5py.File(path, "r") as file:
            return _lost_in(file, source, axis)
    except OSError as error:
        return {-1: f"lies in the file {source.file_name}, which cannot be read ({error})"}


def _lost_in(file: h5py.File, source: Any, axis: int) -> MadeUp:  # noqa: ANN401
    found = file.get(source.dset_name)
    place = f"lies in dataset `{source.dset_name}` of {source.file_name}, which"
    if not isinstance(found, h5py.Dataset):
        return {-1: f"{place} is missing"}
    begin, end = _bounds(source.src_space, found.shape)
    if len(end) != found.ndim or any(last >= size for last, size in zip(end, found.shape, strict=True)):
        return {-1: f"{place} is too small, of shape {found.shape}"}
    if source.vspace.get_select_npoints() > found.size:
        return {-1: f"{place} is too small, of shape {found.shape}"}
    lost = made_up(found, min(axis, found.ndim - 1))
    if not lost:
        return {}
    virtual, _ = source.vspace.get_select_bounds()
    if found.ndim != len(virtual):
        return {-1: f"{place} has parts that were never written"}
    return {row - begin[axis] + virtual[axis]: reason for row, reason in lost.items()}


def _bounds(space: Any, shape: tuple[int, ...]) -> tuple[tuple[int, ...], tuple[int, ...]]:  # noqa: ANN401
    """First and last place of what is taken of a source; "all" is stored without the source's size."""
    if space.get_select_type() == h5py.h5s.SEL_ALL:
        return (0,) * len(shape), tuple(size - 1 for size in shape)
    begin, end = space.get_select_bounds()
    return begin, end


def _existing(path: Path, name: str, prefix: str) -> Path | None:
    """The file that HDF5 would find under a name in another file."""
    if "%b" in name:  # numbered sources
        found = sorted((path.parent / name).parent.glob(Path(name).name.replace("%b", "*")))
        return found[0] if found else None
    folders = [os.environ.get(prefix, "").replace("${ORIGIN}", str(path.parent)), path.parent, "."]
    return next((place for place in (Path(str(folder)) / name for folder in folders) if place.is_file()), None)
