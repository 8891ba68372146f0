"""What a file says of itself before any field is read, and the checks of it."""

import math
from pathlib import Path
from typing import Any, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from lightning_farms.data.fields._layout import FieldLayout
from lightning_farms.data.fields._made_up import MadeUp, made_up
from lightning_farms.data.fields._opening import missing_filters

# PDEBench's names, those of The Well, and those of PDEBench's files with a group for each trajectory
_COORDINATES = (
    ("x-coordinate", "dimensions/x", "0000/grid/x"),
    ("y-coordinate", "dimensions/y", "0000/grid/y"),
    ("t-coordinate", "dimensions/time", "0000/grid/t"),
)
_SHOWN = 8


class DatasetFacts(NamedTuple):
    """One dataset, or those of all trajectories where each has its own."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    missing_filters: list[str]
    made_up: MadeUp
    members: tuple[str, ...]  # names of the trajectories' own datasets
    odd_one: str | None  # a member of another shape or type


class Header(NamedTuple):
    """All that is read on opening."""

    datasets: dict[str, DatasetFacts]
    found: str
    elsewhere: dict[str, str]  # {dataset: the other file that it is in}
    third_axis: bool
    attributes: dict[str, float | None]
    given_frames: int | None
    coordinates: list[Tensor | None]


def read_header(file: h5py.File, layout: FieldLayout) -> Header:
    """Read it; whatever h5py raises is passed on."""
    datasets = {}
    for name in layout.datasets:
        facts = _members(file, name, layout) if "*" in name else _single(file, name, layout)
        if facts is not None:
            datasets[name] = facts
    lacking = [name for name in layout.datasets if name not in datasets]
    links = {name: file.get(name, getlink=True) for name in lacking if name in file or _is_link(file, name)}
    given = _number(file, "given_frames")
    return Header(
        datasets=datasets,
        found=_datasets(file) if lacking else "",
        elsewhere={name: link.filename for name, link in links.items() if isinstance(link, h5py.ExternalLink)},
        third_axis=any(name in file for name in ("z-coordinate", "Vz", "dimensions/z")),
        attributes={name: _number(file, name) for name in ("eta", "zeta", "M")},
        given_frames=None if given is None else int(given),
        coordinates=[_coordinate(file, names) for names in _COORDINATES],
    )


def checked_shape(header: Header, path: Path, layout: FieldLayout) -> tuple[int, int, int, int]:
    """(B, T, X, Y) of fields that can be read."""
    missing = [name for name in layout.datasets if name not in header.datasets]
    if missing:
        raise ValueError(_missing(header, path, layout, missing))
    shapes = {name: _checked(name, facts, header, path, layout) for name, facts in header.datasets.items()}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Expected the fields of {path} to have one shape (B, T, X, Y), but got {shapes}.")
    trajectories, frames, x, y = shapes[layout.datasets[0]]
    if 0 in (trajectories, frames, x, y):
        raise ValueError(
            f"Expected the fields of {path} to hold data, but got {trajectories} trajectories of {frames} frames of "
            f"{x} x {y} cells."
        )
    return trajectories, frames, x, y


def _checked(name: str, facts: DatasetFacts, header: Header, path: Path, layout: FieldLayout) -> tuple[int, ...]:
    if not np.issubdtype(facts.dtype, np.floating):
        raise ValueError(
            f"Expected dataset `{name}` of {path} to hold floating-point numbers, but got {facts.dtype} of shape "
            f"{facts.shape}."
        )
    if facts.odd_one is not None:
        raise ValueError(f"Expected all datasets `{name}` of {path} to be alike, but {facts.odd_one} is not.")
    if facts.missing_filters:
        raise OSError(
            f"Expected the filters of dataset `{name}` of {path} to be installed, but {facts.missing_filters} are not. "
            "The file itself may be intact: install their plug-ins, for most of them `pip install hdf5plugin` and "
            "`import hdf5plugin`, or set HDF5_PLUGIN_PATH."
        )
    try:
        return layout.sizes(name, facts.shape)
    except ValueError as error:
        if header.third_axis and len(facts.shape) == 5:
            raise ValueError(
                f"Expected {path} to hold 2-D fields, but dataset `{name}` is of shape {facts.shape}: it is a 3-D "
                "file, which cannot be read here. Write slices of it to a file of 2-D fields."
            ) from error
        raise ValueError(f"{error} File: {path}.") from error


def _missing(header: Header, path: Path, layout: FieldLayout, missing: list[str]) -> str:
    linked = "".join(f" `{name}` is a link to the file {file}." for name, file in header.elsewhere.items())
    return (
        f"Expected {path} to hold the datasets {list(layout.datasets)}, but {missing} are missing: found "
        f"{header.found}. For a file with other names, give `fields`, a mapping of channels to datasets, each with all "
        f"trajectories in it, or one for each, such as '*/data[0]'.{linked}"
    )


def _is_link(file: h5py.File, name: str) -> bool:
    return file.get(name, getlink=True, default=None) is not None


def _single(file: h5py.File, name: str, layout: FieldLayout) -> DatasetFacts | None:
    dataset = _get(file, name)
    if dataset is None:
        return None
    axis = layout.trajectory_axis(name)
    lacking = made_up(dataset, axis) if dataset.ndim > axis else {}
    return DatasetFacts(dataset.shape, dataset.dtype, missing_filters(dataset), lacking, (), None)


def _members(file: h5py.File, pattern: str, layout: FieldLayout) -> DatasetFacts | None:
    """The datasets that a pattern such as "*/data" names, one for each trajectory, as one."""
    before, _, after = pattern.partition("*")
    group = file.get(before.rstrip("/") or "/")
    names = [f"{before}{each}{after}" for each in sorted(group)] if isinstance(group, h5py.Group) else []
    found = {name: dataset for name in names if (dataset := _get(file, name)) is not None}
    if not found:
        return None
    first = next(iter(found.values()))
    kinds = {name: (dataset.shape, dataset.dtype) for name, dataset in found.items()}
    others = [name for name, kind in kinds.items() if kind != (first.shape, first.dtype)]
    odd = f"`{others[0]}`, of shape {found[others[0]].shape}," if others else None
    axis = layout.trajectory_axis(pattern)
    shape = (*first.shape[:axis], len(found), *first.shape[axis:])
    lacking = {number: "was never written" for number, dataset in enumerate(found.values()) if made_up(dataset, 0)}
    return DatasetFacts(shape, first.dtype, missing_filters(first), lacking, tuple(found), odd)


def _get(file: h5py.File, name: str) -> h5py.Dataset | None:
    """None for what is not there; an error for what is there and damaged."""
    link = file.get(name, getlink=True)
    if link is None:
        return None
    found = file.get(name) if not isinstance(link, h5py.HardLink) else file[name]
    return found if isinstance(found, h5py.Dataset) else None


def _datasets(file: h5py.File) -> str:
    """The first of the datasets in a file; some hold a thousand."""
    found: list[str] = []

    def note(name: str, item: object) -> bool | None:
        if isinstance(item, h5py.Dataset):
            found.append(f"{name} {item.shape}")
        return True if len(found) > _SHOWN else None

    file.visititems(note)
    return ", ".join([*found[:_SHOWN], *(["..."] if len(found) > _SHOWN else [])]) or "none"


def _number(file: h5py.File, name: str) -> float | None:
    value = np.asarray(file.attrs[name]) if name in file.attrs else np.empty(0)
    if value.size != 1 or not np.issubdtype(value.dtype, np.number):
        return None
    number = float(value.reshape(()))
    return number if math.isfinite(number) else None


def _coordinate(file: h5py.File, names: tuple[str, ...]) -> Tensor | None:
    found = [file[name] for name in names if isinstance(file.get(name), h5py.Dataset) and file[name].ndim == 1]
    return torch.from_numpy(found[0][...].astype(np.float32)) if found else None
