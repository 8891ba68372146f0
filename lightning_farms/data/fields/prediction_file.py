"""Writing predicted flows in the layout of PDEBench's files, batch by batch and by several processes."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from lightning_farms.common.atomic import complete_or_nothing

_CHUNK = 2**20  # bytes
_SPARE = 2**18  # bytes of a file besides the fields
_BOOKKEEPING = "share"


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
        trajectories: how many.
        not_finite: how many of them have values that are not finite.
    """

    trajectories: int
    not_finite: int


@dataclass(frozen=True)
class PredictionHeader:
    """What a file of predictions tells beside the fields.

    Args:
        x: (X,), coordinates of the cells; their numbers when left out.
        y: (Y,), likewise.
        t: times of the frames, at least as many as there are frames; their numbers when left out.
        physics: constants of the flow, such as eta, zeta and M.
        checkpoint: file of the network's weights, if there is one.
    """

    x: Tensor | None = None
    y: Tensor | None = None
    t: Tensor | None = None
    physics: Mapping[str, float] | None = None
    checkpoint: str | None = None


class PredictionShare:
    """One process's trajectories, in a file of its own that grows with each batch."""

    def __init__(self, path: Path, channels: Sequence[str], *, given_frames: int) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path, self.rows = path, 0
        self._channels = tuple(channels)
        self._file = h5py.File(path, "x")
        self._file.attrs.update({"channels": list(channels), "given_frames": given_frames})

    def append(self, fields: Tensor, items: Sequence[int], origins: Sequence[Origin]) -> None:
        """Write (batch, X, Y, frames, channels); `items`: places in the data set, `origins`: where each comes from."""
        values = fields.detach().to("cpu", torch.float32).numpy()
        if values.ndim != 5 or values.shape[4] != len(self._channels) or not len(values) == len(items) == len(origins):
            raise ValueError(
                f"Expected argument `fields` to be of shape (batch, X, Y, frames, channels) with {len(items)} "
                f"trajectories and the channels {list(self._channels)}, but got shape {values.shape}."
            )
        frames_first = np.moveaxis(values, 3, 1)
        if not self.rows:
            self._create(frames_first.shape[1:4])
        expected = self._file[self._channels[0]].shape[1:]
        if frames_first.shape[1:4] != expected:
            raise ValueError(
                f"Expected all trajectories of a file to have {expected} frames and cells, but got "
                f"{frames_first.shape[1:4]}. Predict sets of different sizes one by one, each into a file of its own."
            )
        columns: dict[str, object] = {name: frames_first[..., c] for c, name in enumerate(self._channels)}
        columns |= {
            "trajectory": [origin.trajectory for origin in origins],
            "source-file": [origin.source for origin in origins],
            f"{_BOOKKEEPING}/item": list(items),
            f"{_BOOKKEEPING}/finite": np.isfinite(values).all(axis=(1, 2, 3, 4)),
        }
        check_room(self.path, values.nbytes + _SPARE)
        start, self.rows = self.rows, self.rows + len(values)
        for name, column in columns.items():
            self._file[name].resize(self.rows, axis=0)
            self._file[name][start:] = column

    def close(self) -> None:
        """Close the file; closing twice does no harm."""
        self._file.close()

    def _create(self, shape: tuple[int, int, int]) -> None:
        frames = int(np.clip(_CHUNK // (4 * shape[1] * shape[2]), 1, shape[0]))
        for name in self._channels:
            chunks = (1, frames, *shape[1:])
            self._file.create_dataset(name, (0, *shape), np.float32, maxshape=(None, *shape), chunks=chunks)
        for name, kind in (
            ("trajectory", np.dtype(np.int64)),
            ("source-file", h5py.string_dtype()),
            (f"{_BOOKKEEPING}/item", np.dtype(np.int64)),
            (f"{_BOOKKEEPING}/finite", np.dtype(np.bool_)),
        ):
            self._file.create_dataset(name, (0,), kind, maxshape=(None,), chunks=(1024,))


def check_room(path: Path, size: int) -> None:
    """Refuse to write more than there is room for: HDF5 ends the process when it closes a file on a full disk."""
    free = shutil.disk_usage(path.parent).free
    if free < size:
        raise OSError(
            f"Expected {size / 1e6:.2f} MB of free space in {path.parent} for the next predictions, but there are "
            f"{free / 1e6:.2f} MB. Make room, or give PredictionWriter another `path`."
        )


def join_shares(path: Path, shares: Sequence[Path], header: PredictionHeader) -> Joined:
    """Make one file of the processes' shares, in the order of the data set, and delete them.

    A trajectory that several processes have (a distributed sampler repeats some) is taken once. The file appears under
    its name only once it is complete and on disk; an existing one is replaced.
    """
    with complete_or_nothing(path) as temporary:
        if len(shares) == 1 and _in_order(shares[0]):
            os.replace(shares[0], temporary)
        else:
            check_room(path, sum(share.stat().st_size for share in shares) + _SPARE)
            _merge(temporary, shares)
        with h5py.File(temporary, "r+") as file:
            joined = _finish(file, header)
    for share in shares:
        share.unlink(missing_ok=True)
    return joined


def _items(file: h5py.File) -> NDArray[np.int64]:
    items: NDArray[np.int64] = file[f"{_BOOKKEEPING}/item"][...]
    return items


def _in_order(share: Path) -> bool:
    with h5py.File(share, "r") as file:
        return bool((np.diff(_items(file)) > 0).all())


def _merge(path: Path, shares: Sequence[Path]) -> None:
    """Copy the rows one at a time, so that no more than one is in memory."""
    with ExitStack() as stack:
        files = [stack.enter_context(h5py.File(share, "r")) for share in shares]
        rows = list(_rows_in_order(files))
        target = stack.enter_context(h5py.File(path, "x"))
        target.attrs.update(files[0].attrs)
        for name in (*files[0].attrs["channels"], "trajectory", "source-file", f"{_BOOKKEEPING}/finite"):
            like = files[0][name]
            dataset = target.create_dataset(name, (len(rows), *like.shape[1:]), like.dtype)
            for number, (share, row) in enumerate(rows):
                dataset[number] = files[share][name][row]


def _rows_in_order(files: Sequence[h5py.File]) -> Iterator[tuple[int, int]]:
    """Share and row of each trajectory once, in the order of the data set."""
    places: dict[int, tuple[int, int]] = {}
    for share, file in enumerate(files):
        for row, item in enumerate(_items(file).tolist()):
            places.setdefault(item, (share, row))
    return (places[item] for item in sorted(places))


def _finish(file: h5py.File, header: PredictionHeader) -> Joined:
    finite = file[f"{_BOOKKEEPING}/finite"][...]
    del file[_BOOKKEEPING]
    _, frames, x, y = file[file.attrs["channels"][0]].shape
    file["x-coordinate"] = _coordinate(header.x, x)
    file["y-coordinate"] = _coordinate(header.y, y)
    file["t-coordinate"] = _coordinate(_times(header.t, frames), frames + 1)
    file.attrs.update(dict(header.physics or {}))
    if header.checkpoint is not None:
        file.attrs["checkpoint"] = header.checkpoint
    return Joined(len(finite), int((~finite).sum()))


def _coordinate(values: Tensor | None, count: int) -> NDArray[np.float32]:
    return (torch.arange(count) if values is None else values.cpu()).numpy().astype(np.float32)


def _times(t: Tensor | None, frames: int) -> Tensor | None:
    """One more than there are frames, as PDEBench writes them; further ones follow at the last step."""
    if t is None or len(t) > frames:
        return None if t is None else t[: frames + 1]
    times = t.double()
    step = times[-1:] - times[-2:-1] if len(times) > 1 else torch.ones(1, dtype=torch.float64)
    return torch.cat((times, times[-1:] + step * torch.arange(1, frames + 2 - len(times))))
