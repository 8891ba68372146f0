"""Files of predicted flows in PDEBench's layout, filled trajectory by trajectory, even after an interruption."""

import errno
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_farms.common.atomic import complete_or_nothing
from lightning_farms.common.locks import lock
from lightning_farms.common.room import check_room
from lightning_farms.data.fields._layout import check_channel_names
from lightning_farms.data.fields._opening import naming

_SPARE = 2**18  # bytes of a file besides the fields
_STATE = "state"
_FINITE, _NOT_FINITE = 1, 2  # state of a trajectory that is there; 0 if it is not


class Origin(NamedTuple):
    """Where a trajectory comes from.

    Args:
        source: name of its file; "" where unknown.
        trajectory: its number in that file.
    """

    source: str
    trajectory: int


class Joined(NamedTuple):
    """What a finished file holds.

    Args:
        trajectories: how many there are.
        not_finite: how many of them have values that are not finite.
    """

    trajectories: int
    not_finite: int


@dataclass(frozen=True)
class PredictionHeader:
    """What a file of predictions holds besides the fields.

    Args:
        channels: their names, in order.
        given_frames: how many frames of each trajectory were given.
        x: (X,), coordinates of the cells; the cells' numbers when left out.
        y: (Y,), likewise.
        t: times of the frames, continued with the last step if there are too few; the frames' numbers when left out.
        physics: constants of the flow, such as eta, zeta and M.
        checkpoint: file of the network's weights, if there is one.
        settings: all that the predictions depend on, in plain values.
    """

    channels: Sequence[str]
    given_frames: int
    x: Tensor | None = None
    y: Tensor | None = None
    t: Tensor | None = None
    physics: Mapping[str, float] | None = None
    checkpoint: str | None = None
    settings: Mapping[str, Any] | None = None


class PredictionPart:
    """A file with room for all trajectories, each of which is written to its place once it is predicted.

    All of HDF5's own structures are written when the file is made. After that, values go straight to their places, and
    a trajectory is marked once its values are on disk. So whatever ends the process, the file is intact except for the
    trajectories that have no mark, and a full disk is an ordinary error.

    Args:
        path: the file, made by `create_part`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with _unfinished(path), h5py.File(path, "r") as file:
            self.channels = tuple(map(str, file.attrs["channels"]))
            self.given_frames = int(file.attrs["given_frames"])
            self.first = int(file.attrs.get("first", 0))
            self.settings: dict[str, Any] = json.loads(file.attrs.get("settings", "{}"))
            self.shape: tuple[int, ...] = tuple(file[self.channels[0]].shape)
            self._places = [file[name].id.get_offset() for name in self.channels]
            self._state_place: int = file[_STATE].id.get_offset()
            self._state: NDArray[np.uint8] = file[_STATE][...]
        self._row = 4 * int(np.prod(self.shape[1:]))
        self._file: IO[bytes] = path.open("r+b", buffering=0)
        _lock(self._file, path)

    @property
    def items(self) -> range:
        """Places in the data set that this file has room for."""
        return range(self.first, self.first + self.shape[0])

    @property
    def done(self) -> list[int]:
        """Places in the data set of the trajectories that are there."""
        return [self.first + row for row in np.flatnonzero(self._state).tolist()]

    @property
    def not_finite(self) -> int:
        """Number of the trajectories that are there and have values that are not finite."""
        return int((self._state == _NOT_FINITE).sum())

    def write(self, fields: Tensor, items: Sequence[int]) -> None:
        """Write fields of shape (batch, X, Y, frames, channels) to the places `items` in the data set."""
        values = fields.detach().to("cpu", torch.float32).numpy()
        if values.ndim != 5 or values.shape[4] != len(self.channels) or len(values) != len(items):
            raise ValueError(
                f"Expected argument `fields` to be of shape (batch, X, Y, frames, channels) with {len(items)} "
                f"trajectories and the channels {list(self.channels)}, but got shape {values.shape}."
            )
        frames_first = np.moveaxis(values, 3, 1)
        if frames_first.shape[1:4] != self.shape[1:]:
            raise ValueError(
                f"Expected all trajectories of a file to have {self.shape[1:]} frames and cells, but got "
                f"{frames_first.shape[1:4]}. Predict sets of different sizes one by one, each into a file of its own."
            )
        for row, item in zip(frames_first, items, strict=True):
            for channel, place in enumerate(self._places):
                content = np.ascontiguousarray(row[..., channel], dtype=np.float32).tobytes()
                self._put(place + (item - self.first) * self._row, content)
        self._mark(items, np.isfinite(values).all(axis=(1, 2, 3, 4)).tolist())

    def copy_from(self, other: "PredictionPart", item: int) -> None:
        """Copy a trajectory from another part."""
        row = item - other.first
        for channel, place in enumerate(self._places):
            other._file.seek(other._places[channel] + row * other._row)
            content = other._file.read(other._row)
            if len(content) < other._row:
                raise OSError(f"Expected {other.path} to hold trajectory {item} as a whole, but it is cut short.")
            self._put(place + (item - self.first) * self._row, content)
        self._mark([item], [bool(other._state[row] == _FINITE)])

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._file.close()

    def _mark(self, items: Sequence[int], finite: Sequence[bool]) -> None:
        """Mark trajectories as written, after their values are on disk."""
        with _no_space_told(self.path):  # some file systems notice a full disk only here
            os.fsync(self._file.fileno())
        for item, is_finite in zip(items, finite, strict=True):
            self._state[item - self.first] = _FINITE if is_finite else _NOT_FINITE
            self._put(self._state_place + item - self.first, self._state[item - self.first].tobytes())

    def _put(self, place: int, content: bytes) -> None:
        self._file.seek(place)
        left = memoryview(content)
        with _no_space_told(self.path):
            while left:
                left = left[self._file.write(left) :]


@contextmanager
def _unfinished(path: Path) -> Iterator[None]:
    """Make errors of a damaged file say to predict it anew, not to download it again."""
    try:
        with naming(path):
            yield
    except OSError as error:
        if type(error) is not OSError:
            raise
        raise OSError(
            f"Expected {path} to hold predictions that were interrupted, but it is damaged ({error.__cause__}): remove "
            "it, and they begin anew."
        ) from error


@contextmanager
def _no_space_told(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise
        raise OSError(
            f"Expected free space in {path.parent} for the next predictions, but there is none ({error}). Make room, "
            "or give PredictionWriter another `path`."
        ) from error


def create_part(
    path: Path, header: PredictionHeader, size: tuple[int, int, int], origins: Sequence[Origin], *, first: int = 0
) -> PredictionPart:
    """Make a file for trajectories of some origins; `size`: frames and cells of each; `first`: the first one's place.

    It holds everything but the predictions, and appears under its name once it is on disk; an existing file is
    replaced.
    """
    check_channel_names(header.channels)
    shape = (len(origins), *size)
    with complete_or_nothing(path) as temporary:
        size_in_bytes = 4 * len(header.channels) * int(np.prod(shape)) + _SPARE
        check_room(path, size_in_bytes, "the predictions", "give PredictionWriter another `path`")
        with h5py.File(temporary, "x") as file:
            _reserve(file, _STATE, shape[:1], np.dtype(np.uint8))
            file[_STATE][...] = 0
            for name in header.channels:
                _reserve(file, name, shape, np.dtype(np.float32))
            file["trajectory"] = np.array([origin.trajectory for origin in origins], np.int64)
            sources = [origin.source for origin in origins]
            file.create_dataset("source-file", data=sources, dtype=h5py.string_dtype())
            file["x-coordinate"] = _coordinate(header.x, size[1])
            file["y-coordinate"] = _coordinate(header.y, size[2])
            file["t-coordinate"] = _coordinate(_times(header.t, size[0]), size[0] + 1)
            file.attrs.update({"channels": list(header.channels), "given_frames": header.given_frames})
            file.attrs.update(dict(header.physics or {}))
            settings = None if header.settings is None else json.dumps(dict(header.settings))
            for name, value in (("first", first or None), ("settings", settings), ("checkpoint", header.checkpoint)):
                if value is not None:
                    file.attrs[name] = value
    return PredictionPart(path)


def _reserve(file: h5py.File, name: str, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
    """Create a dataset whose values are contiguous and whose place in the file is fixed now."""
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_layout(h5py.h5d.CONTIGUOUS)
    properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    space = h5py.h5s.create_simple(shape)
    file[name] = h5py.Dataset(h5py.h5d.create(file.id, None, h5py.h5t.py_create(dtype), space, properties))


def finish_parts(path: Path, parts: Sequence[PredictionPart], header: PredictionHeader) -> Joined:
    """Join parts into one file, in the order of the data set, and remove them.

    A trajectory that several parts have (a distributed sampler repeats some) is taken once. The file appears under its
    name only once it is complete and on disk; an existing one is replaced. Values are copied only if there are several
    parts, or one that is not full.
    """
    source = {item: part for part in reversed(parts) for item in part.done}
    first = parts[0]
    if list(source) and sorted(source) == list(first.items) and first.first == 0:
        for item in sorted(set(source).difference(first.done)):
            first.copy_from(source[item], item)
        joined = Joined(len(source), first.not_finite)
        first.close()
        with first.path.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(first.path, path)
    else:
        joined = _copied(path, source, header)
    for part in parts:
        part.close()
        part.path.unlink(missing_ok=True)
    return joined


def _copied(path: Path, source: Mapping[int, PredictionPart], header: PredictionHeader) -> Joined:
    """Write the trajectories that are there to a new file."""
    origins = {item: origin for part in set(source.values()) for item, origin in _origins(part)}
    frames, x, y = next(iter(source.values())).shape[1:]
    with complete_or_nothing(path) as temporary:
        target = create_part(temporary, header, (frames, x, y), [origins[item] for item in sorted(source)])
        for row, item in enumerate(sorted(source)):
            _copy_row(target, row, source[item], item)
        joined = Joined(len(source), target.not_finite)
        target.close()
    return joined


def _copy_row(target: PredictionPart, row: int, source: PredictionPart, item: int) -> None:
    target.first = item - row  # the place that the source calls `item` is called `row` here
    target.copy_from(source, item)
    target.first = 0


def _origins(part: PredictionPart) -> list[tuple[int, Origin]]:
    with h5py.File(part.path, "r", locking=False) as file:  # this process has locked it
        pairs = zip(file["source-file"].asstr()[...].tolist(), file["trajectory"][...].tolist(), strict=True)
        return [(item, Origin(*pair)) for item, pair in zip(part.items, pairs, strict=True)]


def _lock(file: IO[bytes], path: Path) -> None:
    """Lock a file; refuse one that another process is writing."""
    if not lock(file):
        file.close()
        raise BlockingIOError(
            f"Expected {path} to be written by one process, but another one has it open: wait for it, or give another "
            "`path`."
        )


def _coordinate(values: Tensor | None, count: int) -> NDArray[np.float32]:
    return (torch.arange(count) if values is None else values.cpu()).numpy().astype(np.float32)


def _times(t: Tensor | None, frames: int) -> Tensor | None:
    """Return one time more than there are frames, as PDEBench has; missing ones continue with the last step."""
    if t is None or len(t) > frames:
        return None if t is None else t[: frames + 1]
    times = t.double()
    step = times[-1:] - times[-2:-1] if len(times) > 1 else torch.ones(1, dtype=torch.float64)
    return torch.cat((times, times[-1:] + step * torch.arange(1, frames + 2 - len(times))))
