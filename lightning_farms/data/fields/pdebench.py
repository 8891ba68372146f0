"""Lazy reader of PDEBench's 2D compressible-flow files, and of others by the names of their datasets."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from lightning_farms.common.arguments import check_at_least
from lightning_farms.data.fields._layout import FieldLayout

ChannelOrder = Literal["dpot", "pdebench"]

FIELDS = ("density", "pressure", "Vx", "Vy")
CHANNELS: dict[ChannelOrder, tuple[str, ...]] = {
    "dpot": ("Vx", "Vy", "density", "pressure"),
    "pdebench": FIELDS,
}
# PDEBench's names and those of The Well
_COORDINATES = (
    ("x-coordinate", "dimensions/x"),
    ("y-coordinate", "dimensions/y"),
    ("t-coordinate", "dimensions/time"),
)
_SHOWN = 8


class FileShape(NamedTuple):
    """Size of the fields of a file.

    Args:
        trajectories: number of trajectories.
        frames: frames of each.
        x: cells along x.
        y: cells along y.
    """

    trajectories: int
    frames: int
    x: int
    y: int


class PDEBenchFile:
    """One PDEBench 2D compressible-flow file, or another HDF5 file of 2D trajectories, read lazily.

    Expects datasets density, pressure, Vx and Vy of one shape (B, T, X, Y), or those that `fields` names. Only the
    header is read on opening, so a file of 55 GB opens in milliseconds; `read` then reads what it is asked for. The
    handle is opened by each process for itself at its first `read`, and is left out when the object is pickled, so the
    object can go to workers.

    Args:
        path: the HDF5 file.
        channel_order: "dpot" for [Vx, Vy, density, pressure], "pdebench" for [density, pressure, Vx, Vy].
        fields: {channel: dataset}, in the order of the channels, in place of `channel_order` for files with other
            datasets. "t1_fields/velocity[0]" is the first component of a vector.
        axes: order of the datasets' axes: b trajectory, t frame, x, y, and c for components, last when left out.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it is a folder, not HDF5, or cut short.
        ValueError: if a dataset is missing, has other axes, holds no floating-point numbers, or the shapes disagree.

    Example:
        >>> import tempfile
        >>> from lightning_farms.data import SimulationConfig, simulate_to_file
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = SimulationConfig(trajectories=2, resolution=8, frames=5)
        ...     simulate_to_file(f"{folder}/flow.hdf5", config, progress=False)
        ...     file = PDEBenchFile(f"{folder}/flow.hdf5")
        ...     file.mach, file.shape.frames, file.read(1, 0, 3).shape
        (0.1, 5, torch.Size([8, 8, 3, 4]))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        channel_order: ChannelOrder = "dpot",
        fields: Mapping[str, str] | None = None,
        axes: str = "btxy",
    ) -> None:
        names = channel_names(channel_order)
        self.path = Path(path)
        self.layout = FieldLayout(dict(zip(names, names, strict=True)) if fields is None else fields, axes)
        self._handle: h5py.File | None = None
        self._datasets: dict[str, h5py.Dataset] = {}
        self._owner: int | None = None
        with self._open() as file:
            self.shape = _checked_shape(file, self.path, self.layout)
            self.eta, self.zeta, self.mach = (_attribute(file, name) for name in ("eta", "zeta", "M"))
            self.x, self.y, self.t = (_coordinate(file, names) for names in _COORDINATES)

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in order."""
        return self.layout.channels

    def read(
        self,
        trajectory: int,
        start: int = 0,
        stop: int | None = None,
        *,
        stride: int = 1,
        time_stride: int = 1,
    ) -> Tensor:
        """Read every time_stride-th of the frames start to stop - 1 of one trajectory.

        Args:
            trajectory: its number, in [0, B).
            start: first frame, in [0, T).
            stop: one past the last frame, in (start, T]; T when left out.
            stride: every stride-th cell along x and y, at least 1.
            time_stride: every time_stride-th frame, at least 1.

        Returns:
            (X / stride, Y / stride, (stop - start) / time_stride, C), the quotients rounded up, float32.

        Raises:
            ValueError: for arguments out of range, or NaN or infinite values in what was read.
            OSError: if the data cannot be read.
        """
        stop = self.shape.frames if stop is None else stop
        self._check_read(trajectory, start, stop, stride, time_stride)
        frames = range(start, stop, time_stride)
        sizes = (-(-self.shape.x // stride), -(-self.shape.y // stride), len(frames))
        item = np.empty((*sizes, len(self.channels)), np.float32)
        for dataset in self.layout.datasets:
            for channel, field in self._read_fields(dataset, trajectory, frames).items():
                # Whole frames are read and thinned out here: selecting cells in HDF5 is slower, most of all in chunks.
                thinned = field[:, ::stride, ::stride]
                self._check_finite(thinned, self.channels[channel], trajectory, frames)
                item[..., channel] = np.moveaxis(thinned, 0, -1)
        return torch.from_numpy(item)

    def close(self) -> None:
        """Close this process's handle, if open; the next `read` opens a new one."""
        if self._handle is not None:
            self._handle.close()
            self._handle = self._owner = None
            self._datasets = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_owner": None, "_datasets": {}}

    def _open(self) -> h5py.File:
        if not self.path.exists():
            raise FileNotFoundError(f"Expected argument `path` to be an existing file, but found none at {self.path}.")
        if self.path.is_dir():
            raise IsADirectoryError(f"Expected argument `path` to be an HDF5 file, but {self.path} is a folder.")
        try:
            return h5py.File(self.path, "r")
        except OSError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: OSError) -> OSError:
        return OSError(
            f"Expected {self.path} to be a complete HDF5 file, but it cannot be read ({error}). It may be cut short "
            "or of another format: compare its size and checksum with the source's and download it again."
        )

    def _opened(self, name: str) -> h5py.Dataset:
        """The dataset, opened by this process; looking it up costs as much as reading a small field."""
        if self._owner != os.getpid():
            self.close()
        if self._handle is None:
            self._handle, self._owner = self._open(), os.getpid()
        if name not in self._datasets:
            self._datasets[name] = self._handle[name]
        return self._datasets[name]

    def _check_read(self, trajectory: int, start: int, stop: int, stride: int, time_stride: int) -> None:
        trajectories, frames = self.shape[:2]
        if not 0 <= trajectory < trajectories:
            raise ValueError(f"Expected argument `trajectory` to be in [0, {trajectories}), but got {trajectory}.")
        if not 0 <= start < stop <= frames:
            raise ValueError(
                f"Expected arguments `start` and `stop` to name some of the {frames} frames of {self.path}, "
                f"but got {start} and {stop}."
            )
        check_at_least(1, stride=stride, time_stride=time_stride)

    def _read_fields(self, dataset: str, trajectory: int, frames: range) -> dict[int, np.ndarray[Any, Any]]:
        index = self.layout.index(dataset, trajectory, slice(frames.start, frames.stop, frames.step))
        try:
            read = self._opened(dataset)[index]
        except OSError as error:
            raise self._unreadable(error) from error
        return self.layout.channel_fields(dataset, read)

    def _check_finite(self, field: np.ndarray[Any, Any], name: str, trajectory: int, frames: range) -> None:
        if not np.isfinite(field).all():
            raise ValueError(
                f"Expected channel `{name}` of {self.path} to be finite, but trajectory {trajectory} has NaN or "
                f"infinite values in frames {frames[0]} to {frames[-1]}. Download or simulate the file again."
            )


def channel_names(channel_order: ChannelOrder) -> tuple[str, ...]:
    """Name the channels of an order.

    Example:
        >>> channel_names("dpot")
        ('Vx', 'Vy', 'density', 'pressure')
    """
    if channel_order not in CHANNELS:
        raise ValueError(f"Expected argument `channel_order` to be one of {list(CHANNELS)}, but got {channel_order!r}.")
    return CHANNELS[channel_order]


def _checked_shape(file: h5py.File, path: Path, layout: FieldLayout) -> FileShape:
    missing = [name for name in layout.datasets if not isinstance(file.get(name), h5py.Dataset)]
    if missing:
        raise ValueError(
            f"Expected {path} to hold the datasets {list(layout.datasets)}, but {missing} are missing: found "
            f"{_datasets(file)}. For a file with other names, give `fields`, a mapping of channels to datasets, each "
            "with all trajectories in it."
        )
    shapes = {}
    for name in layout.datasets:
        dataset = file[name]
        if not np.issubdtype(dataset.dtype, np.floating):
            raise ValueError(
                f"Expected dataset `{name}` of {path} to hold floating-point numbers, but got {dataset.dtype} of shape "
                f"{dataset.shape}."
            )
        try:
            shapes[name] = layout.sizes(name, dataset.shape)
        except ValueError as error:
            raise ValueError(f"{error} File: {path}.") from error
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Expected the fields of {path} to have one shape (B, T, X, Y), but got {shapes}.")
    shape = FileShape(*shapes[layout.datasets[0]])
    if 0 in shape:
        raise ValueError(f"Expected the fields of {path} to hold data, but got {shape}.")
    return shape


def _datasets(file: h5py.File) -> str:
    """The first of the datasets in a file; some hold a thousand."""
    found: list[str] = []

    def note(name: str, item: object) -> bool | None:
        if isinstance(item, h5py.Dataset):
            found.append(f"{name} {item.shape}")
        return True if len(found) > _SHOWN else None

    file.visititems(note)
    return ", ".join([*found[:_SHOWN], *(["..."] if len(found) > _SHOWN else [])]) or "none"


def _attribute(file: h5py.File, name: str) -> float | None:
    return float(file.attrs[name]) if name in file.attrs else None


def _coordinate(file: h5py.File, names: tuple[str, ...]) -> Tensor | None:
    found = [file[name] for name in names if isinstance(file.get(name), h5py.Dataset) and file[name].ndim == 1]
    return torch.from_numpy(found[0][...].astype(np.float32)) if found else None
