"""Lazy reader of PDEBench's 2D compressible-flow files, and of others by the names of their datasets."""

import os
import zlib
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import h5py
import numpy as np
import torch
from torch import Tensor

from lightning_farms.common.arguments import check_at_least
from lightning_farms.common.warning import warn_user
from lightning_farms.data.fields._coordinates import checked_grid
from lightning_farms.data.fields._header import checked_axes, lost_trajectories, read_header
from lightning_farms.data.fields._identity import identity
from lightning_farms.data.fields._layout import DatasetAxes, FieldLayout
from lightning_farms.data.fields._opening import OPEN_FILES, check_local, naming, open_hdf5
from lightning_farms.data.fields._values import Array, Fault, Survey, as_single, faults, lost_digits, zero_frames

ChannelOrder = Literal["dpot", "pdebench"]

FIELDS = ("density", "pressure", "Vx", "Vy")
CHANNELS: dict[ChannelOrder, tuple[str, ...]] = {"dpot": ("Vx", "Vy", "density", "pressure"), "pdebench": FIELDS}

_POSITIVE = ("density", "pressure")
_BLOCK = 2**23  # values
_REMEDY = (
    "Download or simulate the file again, or leave the flow out (`skip`); `lightning-farms check` names all such flows."
)


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
    header is read on opening, so a file of 55 GB opens in milliseconds; `read` then reads what it is asked for. Each
    process opens a handle of its own at its first `read`. The handle is left out when the object is pickled, so the
    object can be sent to workers.

    Args:
        path: the HDF5 file.
        channel_order: "dpot" for [Vx, Vy, density, pressure], "pdebench" for [density, pressure, Vx, Vy].
        fields: {channel: dataset}, in the order of the channels, in place of `channel_order` for files with other
            datasets. "t1_fields/velocity[0]" is the first component of a vector.
        axes: order of the datasets' axes: b trajectory, t frame, x, y, and c for components, last when left out.
        left_out: numbers of trajectories that will not be read; what is odd about them is not reported.

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
        left_out: Collection[int] = (),
    ) -> None:
        names = channel_names(channel_order)
        check_local(path)
        self.path = Path(path).expanduser()
        self.layout = FieldLayout(dict(zip(names, names, strict=True)) if fields is None else fields, axes)
        self._handle: h5py.File | None = None
        self._datasets: dict[str, h5py.Dataset] = {}
        self._owner: int | None = None
        self._identity: str | None = None
        self._left_out = frozenset(left_out)
        with open_hdf5(self.path) as file:
            self._state = _state_of(self.path)
            with naming(self.path):
                header = read_header(file, self.layout, left_out)
            shape, self._axes = checked_axes(header, self.path, self.layout, may_lack=fields is not None)
            self.shape = FileShape(*shape)
            with naming(self.path):
                self.made_up = lost_trajectories(file, header, self._axes, self.shape.trajectories)
        self.eta, self.zeta, self.mach = (header.attributes[name] for name in ("eta", "zeta", "M"))
        sizes = dict(zip("btxy", self.shape, strict=True))
        self.x, self.y, self.t, self.remarks = checked_grid(
            header.coordinates, sizes, self.path, own=header.own, left_out=left_out
        )
        self.periodic = (True, True) if fields is None else header.periodic
        self.given_frames = header.given_frames
        self._others = header.others
        truth = fields is None and self.given_frames is None  # a network may predict any value
        self._positive = frozenset(_POSITIVE if truth else ())
        of = {channel: name for name in self.layout.datasets for channel in self.layout.channels_of(name)}
        self._marks = {channel: header.datasets[name].marks for channel, name in of.items()}
        self._in_time = [c for c, name in sorted(of.items()) if self._axes[name].varies_in_time(self.shape.frames)]
        self._numbers = frozenset(c for c, name in of.items() if not set(self._axes[name].letters) & set("txy"))
        self.told: set[str] = set()  # channels that were warned of
        self._members = {name: facts.members for name, facts in header.datasets.items() if facts.members}

    @property
    def channels(self) -> tuple[str, ...]:
        """Names of the channels, in order."""
        return self.layout.channels

    @property
    def fields(self) -> dict[str, str]:
        """{channel: dataset}, in the order of the channels."""
        return dict(self.layout.fields)

    def identity(self) -> str:
        """Return what identifies the file under whatever name, from its size, its header and the values at both ends.

        It is determined at the first call and stays the same, even if the file changes.
        """
        if self._identity is None:
            self._identity = identity(self.path, self._others)
        return self._identity

    def read(
        self, trajectory: int, start: int = 0, stop: int | None = None, *, stride: int = 1, time_stride: int = 1
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
            ValueError: for arguments out of range, or values that no flow can have, such as NaN, in what was read.
            OSError: if the data cannot be read.
        """
        stop = self.shape.frames if stop is None else stop
        self._check_read(trajectory, start, stop, stride, time_stride)
        frames = range(start, stop, time_stride)
        sizes = (-(-self.shape.x // stride), -(-self.shape.y // stride), len(frames))
        item = np.empty((*sizes, len(self.channels)), np.float32)
        for channel, field, single in self._fields(trajectory, frames, stride):
            found = self._faults(channel, field, single, frames)
            if found:
                raise ValueError(self._wrong(trajectory, found))
            if (start, stop) == (0, self.shape.frames) and self.channels[channel] not in self.told:
                self._tell(channel, lost_digits(field, single))
            item[..., channel] = np.moveaxis(single, 0, -1)
        self._check_not_zero(item, trajectory, frames)
        return torch.from_numpy(item)

    def blocks(self) -> list[range]:
        """Return all frames, in runs of about 32 MB."""
        at_once = max(2, _BLOCK // (self.shape.x * self.shape.y * len(self.channels)))
        starts = range(0, self.shape.frames, at_once)
        return [range(start, min(start + at_once, self.shape.frames)) for start in starts]

    def survey(self, trajectory: int, frames: range) -> Survey:
        """Examine some frames of one trajectory, at all cells.

        Args:
            trajectory: its number, in [0, B).
            frames: some of its frames.

        Returns:
            What is wrong with them, their extremes, repeated frames and digests.

        Raises:
            ValueError: if HDF5 would make the values up.
            OSError: if the data cannot be read.
        """
        found: list[Fault] = []
        extents, digest = [(0.0, 0.0)] * len(self.channels), [0] * len(self.channels)
        same = np.ones(max(len(frames) - 1, 0), bool)
        for channel, field, single in self._fields(trajectory, frames, 1):
            found += self._faults(channel, field, single, frames)
            extents[channel] = (float(single.min()), float(single.max()))
            digest[channel] = zlib.crc32(np.ascontiguousarray(single).data)
            if channel in self._in_time:
                same &= (single[1:] == single[:-1]).all((1, 2))
        repeats = [frames[place + 1] for place in np.flatnonzero(same).tolist()]
        return Survey(found, extents, repeats, tuple(digest), self._numbers)

    def close(self) -> None:
        """Close this process's handle, if open; the next `read` opens a new one."""
        if self._handle is not None:
            OPEN_FILES.closed(self)
            self._handle.close()
            self._handle = self._owner = None
            self._datasets = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": None, "_owner": None, "_datasets": {}}

    def _opened(self) -> h5py.File:
        """Return the file, opened by this process."""
        if self._owner != os.getpid():
            self.close()
        OPEN_FILES.used(self)
        if self._handle is None:
            self._handle, self._owner = open_hdf5(self.path), os.getpid()
            self._check_unchanged()
        return self._handle

    def _check_unchanged(self) -> None:
        """Warn of a file that was written since its header was read; refuse it if its fields are of other sizes."""
        now = _state_of(self.path)
        if now == self._state:
            return
        shape = PDEBenchFile(self.path, fields=self.fields, axes=self.layout.axes, left_out=self._left_out).shape
        if shape != self.shape:
            self.close()
            raise OSError(
                f"Expected {self.path} to be as it was when it was first opened, with {tuple(self.shape)} "
                f"trajectories, frames and cells, but it was written since, and has {tuple(shape)}. Put the old one "
                "back, or begin anew."
            )
        self._state = now
        warn_user(
            f"{self.path} was written since it was first opened: from now on, its values are the new ones.",
        )

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

    def _fields(self, trajectory: int, frames: range, stride: int) -> Iterator[tuple[int, Array, Array]]:
        """Yield each channel's number, and its values (T, X, Y) as stored and in float32."""
        if trajectory in self.made_up:
            raise ValueError(
                f"Expected trajectory {trajectory} of {self.path} to be stored, but {self.made_up[trajectory]}, and "
                f"HDF5 would make up its values. {_REMEDY}"
            )
        chosen = slice(frames.start, frames.stop, frames.step)
        size = (len(frames), self.shape.x, self.shape.y)
        file = self._opened()
        for dataset, axes in self._axes.items():
            with naming(self.path, flow=f"dataset `{dataset}` of trajectory {trajectory}"):
                read = self._read(file, dataset, axes, trajectory, chosen)
            for channel, field in axes.fields(read, self.layout.channels_of(dataset), size).items():
                # Whole frames are read and thinned out here: selecting cells in HDF5 is slower, most of all in chunks.
                thinned = field[:, ::stride, ::stride]
                yield channel, thinned, as_single(thinned)

    def _read(self, file: h5py.File, dataset: str, axes: DatasetAxes, trajectory: int, frames: slice) -> Array:
        index = axes.index(trajectory, frames)
        if dataset in self._members:
            read: Array = self._dataset(file, self._members[dataset][trajectory])[index[1:]]
        else:
            read = np.asarray(self._dataset(file, dataset)[index])
        return read

    def _dataset(self, file: h5py.File, name: str) -> h5py.Dataset:
        """Return a dataset of the file, kept since looking it up costs as much as reading a small field."""
        if name not in self._datasets:
            self._datasets[name] = file[name]
        return self._datasets[name]

    def _faults(self, channel: int, field: Array, single: Array, frames: range) -> list[Fault]:
        name = self.channels[channel]
        return faults(field, single, name, frames, positive=name in self._positive, marks=self._marks[channel])

    def _tell(self, channel: int, what: str) -> None:
        """Warn of a channel, once, if there is something to say."""
        name = self.channels[channel]
        if what:
            self.told.add(name)
            warn_user(f"In {self.path}, channel `{name}` {what}.")

    def _check_not_zero(self, item: Array, trajectory: int, frames: range) -> None:
        """Refuse frames that are 0 in all channels, or in a fluid's velocity after others; warn of other zeros."""
        varying = item if len(self._in_time) == item.shape[3] else item[..., self._in_time]
        zero = zero_frames(varying)
        if zero:
            raise ValueError(self._zeros("every channel", trajectory, frames, zero))
        for place, channel in enumerate(self._in_time):
            zero, name = zero_frames(varying[..., place : place + 1]), f"channel `{self.channels[channel]}`"
            if zero and self._positive and len(zero) < len(frames):
                raise ValueError(self._zeros(name, trajectory, frames, zero))
            if zero and name not in self.told:
                self.told.add(name)
                warn_user(
                    f"In {self.path}, {name} of trajectory {trajectory} is 0 in whole frames. If these were never "
                    "written, leave such flows out (`skip`; `lightning-farms check` names them). A relative error of "
                    "frames that are 0 everywhere means nothing.",
                )

    def _zeros(self, what: str, trajectory: int, frames: range, zero: list[int]) -> str:
        rest = "" if len(zero) == len(frames) else ", though not in others"
        return (
            f"Expected the fields of {self.path} to hold values, but {what} of trajectory {trajectory} is 0 in frames "
            f"{frames[zero[0]]} to {frames[zero[-1]]}{rest}. {_REMEDY}"
        )

    def _wrong(self, trajectory: int, found: list[Fault]) -> str:
        first, more = found[0], f" and {len(found) - 1} more frames" if len(found) > 1 else ""
        rule = "above 0, as for a fluid" if first.what in ("zero", "negative") else "finite"
        return (
            f"Expected channel `{first.channel}` of {self.path} to be {rule}, but trajectory {trajectory} has "
            f"{first.what} values in frame {first.frame}{more}. {_REMEDY}"
        )


def _state_of(path: Path) -> tuple[int, int]:
    """Return the size of a file, and when it was last written."""
    state = path.stat()
    return state.st_size, state.st_mtime_ns


def channel_names(channel_order: ChannelOrder) -> tuple[str, ...]:
    """Return the names of the channels in an order.

    Example:
        >>> channel_names("dpot")
        ('Vx', 'Vy', 'density', 'pressure')
    """
    if channel_order not in CHANNELS:
        raise ValueError(f"Expected argument `channel_order` to be one of {list(CHANNELS)}, but got {channel_order!r}.")
    return CHANNELS[channel_order]
