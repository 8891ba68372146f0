"""Lazy reader of PDEBench's 2D compressible-flow files."""

import os
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

ChannelOrder = Literal["dpot", "pdebench"]

FIELDS = ("density", "pressure", "Vx", "Vy")
CHANNELS: dict[ChannelOrder, tuple[str, ...]] = {
    "dpot": ("Vx", "Vy", "density", "pressure"),
    "pdebench": FIELDS,
}


class FileShape(NamedTuple):
    """Size of the four fields of a file.

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
    """One PDEBench 2D compressible-flow file, read lazily.

    Expects datasets density, pressure, Vx and Vy of one shape (B, T, X, Y). Only the header is read on opening, so a
    file of 55 GB opens in milliseconds; `read` then reads what it is asked for. The handle is opened by each process
    for itself at its first `read`, and is left out when the object is pickled, so the object can go to workers.

    Args:
        path: the HDF5 file.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if it is a folder, not HDF5, or cut short.
        ValueError: if a dataset is missing, is not of rank 4, holds no numbers, or the shapes disagree.

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

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._handle: h5py.File | None = None
        self._owner: int | None = None
        with self._open() as file:
            self.shape = _checked_shape(file, self.path)
            self.eta, self.zeta, self.mach = (_attribute(file, name) for name in ("eta", "zeta", "M"))
            self.x, self.y, self.t = (_coordinate(file, f"{axis}-coordinate") for axis in "xyt")

    def read(
        self,
        trajectory: int,
        start: int = 0,
        stop: int | None = None,
        *,
        stride: int = 1,
        channel_order: ChannelOrder = "dpot",
    ) -> Tensor:
        """Read frames start to stop - 1 of one trajectory.

        Args:
            trajectory: its number, in [0, B).
            start: first frame, in [0, T).
            stop: one past the last frame, in (start, T]; T when left out.
            stride: every stride-th cell along x and y, at least 1.
            channel_order: "dpot" for [Vx, Vy, density, pressure], "pdebench" for [density, pressure, Vx, Vy].

        Returns:
            (X / stride, Y / stride, stop - start, 4), float32.

        Raises:
            ValueError: for arguments out of range, or NaN or infinite values in what was read.
            OSError: if the data cannot be read.
        """
        stop = self.shape.frames if stop is None else stop
        self._check_read(trajectory, start, stop, stride)
        channels = channel_names(channel_order)
        fields = [self._read_field(name, trajectory, start, stop)[:, ::stride, ::stride] for name in channels]
        frames, x, y = fields[0].shape
        item = np.empty((x, y, frames, len(fields)), np.float32)
        for channel, field in enumerate(fields):
            item[..., channel] = np.moveaxis(field, 0, -1)
        return torch.from_numpy(item)

    def close(self) -> None:
        """Close this process's handle, if open; the next `read` opens a new one."""
        if self._handle is not None:
            self._handle.close()
            self._handle = self._owner = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_owner": None}

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

    def _opened(self) -> h5py.File:
        if self._owner != os.getpid():
            self.close()
        if self._handle is None:
            self._handle, self._owner = self._open(), os.getpid()
        return self._handle

    def _check_read(self, trajectory: int, start: int, stop: int, stride: int) -> None:
        trajectories, frames = self.shape[:2]
        if not 0 <= trajectory < trajectories:
            raise ValueError(f"Expected argument `trajectory` to be in [0, {trajectories}), but got {trajectory}.")
        if not 0 <= start < stop <= frames:
            raise ValueError(
                f"Expected arguments `start` and `stop` to name some of the {frames} frames of {self.path}, "
                f"but got {start} and {stop}."
            )
        if stride < 1:
            raise ValueError(f"Expected argument `stride` to be at least 1, but got {stride}.")

    def _read_field(self, name: str, trajectory: int, start: int, stop: int) -> Any:  # noqa: ANN401 (h5py is untyped)
        try:
            field = self._opened()[name][trajectory, start:stop]
        except OSError as error:
            raise self._unreadable(error) from error
        if not np.isfinite(field).all():
            raise ValueError(
                f"Expected dataset `{name}` of {self.path} to be finite, but trajectory {trajectory} has NaN or "
                f"infinite values in frames {start} to {stop - 1}. Download or simulate the file again."
            )
        return field


def channel_names(channel_order: ChannelOrder) -> tuple[str, ...]:
    """Name the channels of an order.

    Args:
        channel_order: "dpot" or "pdebench".

    Returns:
        The names of the datasets, in order.

    Raises:
        ValueError: for another name.

    Example:
        >>> channel_names("dpot")
        ('Vx', 'Vy', 'density', 'pressure')
    """
    if channel_order not in CHANNELS:
        raise ValueError(f"Expected argument `channel_order` to be one of {list(CHANNELS)}, but got {channel_order!r}.")
    return CHANNELS[channel_order]


def _checked_shape(file: h5py.File, path: Path) -> FileShape:
    missing = [name for name in FIELDS if not isinstance(file.get(name), h5py.Dataset)]
    if missing:
        raise ValueError(
            f"Expected {path} to hold the datasets {list(FIELDS)}, but {missing} are missing: found {list(file)}."
        )
    for name in FIELDS:
        if file[name].ndim != 4 or not np.issubdtype(file[name].dtype, np.floating):
            raise ValueError(
                f"Expected dataset `{name}` of {path} to hold floating-point numbers of shape (B, T, X, Y), "
                f"but got {file[name].dtype} of shape {file[name].shape}."
            )
    shapes = {name: file[name].shape for name in FIELDS}
    if len(set(shapes.values())) > 1:
        raise ValueError(f"Expected the fields of {path} to have one shape, but got {shapes}.")
    return FileShape(*shapes["density"])


def _attribute(file: h5py.File, name: str) -> float | None:
    return float(file.attrs[name]) if name in file.attrs else None


def _coordinate(file: h5py.File, name: str) -> Tensor | None:
    return torch.from_numpy(file[name][...].astype(np.float32)) if name in file else None
