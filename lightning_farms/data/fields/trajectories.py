"""The trajectories of one or several files, numbered consecutively."""

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import NamedTuple

from torch import Tensor

from lightning_farms.common.arguments import check_at_least
from lightning_farms.common.seeding import shuffled
from lightning_farms.common.texts import listed
from lightning_farms.data._normalization import ChannelStatistics, channel_statistics, standardize
from lightning_farms.data.fields._identity import values_identity
from lightning_farms.data.fields.trajectory_files import FlowFile

_ROUNDING = 2.0**-21  # of a mean: four steps of float32, below which a spread is only rounding


class FilePart(NamedTuple):
    """Some trajectories of a file.

    Args:
        file: the file to read.
        trajectories: their numbers.
        stride: every stride-th cell along x and y, at least 1.
    """

    file: FlowFile
    trajectories: Sequence[int]
    stride: int = 1


class Coordinates(NamedTuple):
    """Places and times of the values of a data module's items.

    Args:
        x: centres of the cells along x, (X,), or None if unknown.
        y: centres of the cells along y, (Y,), or None if unknown.
        t: times of a whole trajectory's frames, (T,), or None if unknown.
    """

    x: Tensor | None
    y: Tensor | None
    t: Tensor | None


class Trajectories:
    """Parts of files that are read as one sequence, in the given order.

    Args:
        parts: at least one, of files with the same number of frames.
        time_stride: every time_stride-th frame, at least 1.

    Raises:
        ValueError: for no part, a stride below 1, or numbers of frames that differ.
    """

    def __init__(self, parts: Sequence[FilePart], *, time_stride: int = 1) -> None:
        if not parts:
            raise ValueError("Expected argument `parts` to hold at least one part of a file, but got none.")
        check_at_least(1, time_stride=time_stride)
        frames = parts[0].file.shape.frames
        for part in parts:
            if part.file.shape.frames != frames:
                raise ValueError(
                    f"Expected all files to have as many frames as {parts[0].file.path}, {frames}, but "
                    f"{part.file.path} has {part.file.shape.frames}. Use a data module for each."
                )
        self.parts, self.time_stride = tuple(parts), time_stride
        self.statistics: ChannelStatistics | None = None
        self._ends = list(accumulate(len(part.trajectories) for part in parts))

    def __len__(self) -> int:
        return self._ends[-1]

    @property
    def stored_frames(self) -> int:
        """Number of frames of a trajectory in the files."""
        return self.parts[0].file.shape.frames

    @property
    def frames(self) -> int:
        """Number of frames of a trajectory that are left after the stride in time."""
        return math.ceil(self.stored_frames / self.time_stride)

    def check(self, number: int) -> int:
        """Read all frames of one trajectory and refuse bad values.

        Args:
            number: its place in the sequence, in [0, len).

        Returns:
            A number that identifies the trajectory, as `identity` does.

        Raises:
            IndexError: if there is no such trajectory.
            ValueError: for values that no flow can have.
            OSError: if the data cannot be read.
        """
        part, trajectory = self.place(number)
        ends, last = [], (self.frames - 1) * self.time_stride
        for frames in part.file.blocks():
            item = part.file.read(trajectory, frames.start, frames.stop, stride=part.stride)
            ends += [item[:, :, frame - frames.start] for frame in (0, last) if frame in frames]
        return values_identity(ends)

    def identity(self, item: Tensor) -> int:
        """Identify a trajectory by its values, whatever file it is in.

        Args:
            item: all its frames, as `read` passes them to `change`.

        Returns:
            A number computed from its first and its last frame; not 0.
        """
        return values_identity([item[:, :, 0], item[:, :, -1]])

    def read(
        self, number: int, start: int = 0, stop: int | None = None, *, change: Callable[[Tensor], Tensor] | None = None
    ) -> Tensor:
        """Read every time_stride-th frame of one trajectory from `start` on, standardized if there are `statistics`.

        Args:
            number: its place in the sequence, in [0, len).
            start: first frame, as counted in the file.
            stop: one past the last frame, as counted in the file; to the end when left out.
            change: function applied to the frames in physical units, before they are standardized.

        Returns:
            (X, Y, T, C), float32.

        Raises:
            IndexError: if there is no such trajectory.
            ValueError: for frames out of range, or values that no flow can have.
            OSError: if the data cannot be read.
        """
        part, trajectory = self.place(number)
        frames = part.file.read(trajectory, start, stop, stride=part.stride, time_stride=self.time_stride)
        frames = frames if change is None else change(frames)
        return frames if self.statistics is None else standardize(frames, self.statistics)

    def place(self, number: int) -> tuple[FilePart, int]:
        """Find the file that holds a trajectory.

        Args:
            number: its place in the sequence, in [0, len).

        Returns:
            Its part, and its number in the part's file.

        Raises:
            IndexError: if there is no such trajectory.
        """
        if not 0 <= number < len(self):
            raise IndexError(f"Expected argument `number` to be in [0, {len(self)}), but got {number}.")
        place = bisect_right(self._ends, number)
        part = self.parts[place]
        return part, part.trajectories[number - self._ends[place] + len(part.trajectories)]


def sampled_statistics(trajectories: Trajectories, *, seed: int, most: int = 64) -> ChannelStatistics:
    """Compute the statistics of the channels over a sample of trajectories, read one after the other."""
    if len(trajectories) == 0:
        raise ValueError(
            "Expected the train split to have trajectories to take the statistics of `normalize` from, but it is "
            "empty: raise `train_fraction`, or give a checkpoint that has the statistics."
        )
    raw = Trajectories(trajectories.parts, time_stride=trajectories.time_stride)
    sample = sorted(shuffled(len(raw), seed)[:most])
    statistics = channel_statistics(raw.read(number) for number in sample)
    constant = (statistics.std <= _ROUNDING * statistics.mean.abs()).nonzero().flatten().tolist()
    if constant:
        raise ValueError(_constant(raw, constant[0], float(statistics.mean[constant[0]]), sample))
    return statistics


def _constant(trajectories: Trajectories, channel: int, value: float, sample: Sequence[int]) -> str:
    places = [trajectories.place(number) for number in sample]
    flows = {part.file.path: [number for other, number in places if other is part] for part, _ in places}
    told = "; ".join(f"{listed(map(str, numbers))} of {path}" for path, numbers in flows.items())
    name = trajectories.parts[0].file.channels[channel]
    return (
        f"Expected channel `{name}` to vary, since `normalize` divides by its standard deviation, but it is {value:g} "
        f"everywhere in the trajectories that the statistics are taken of: {told}. Set `normalize` to false, leave the "
        "channel out (`fields`), or leave out such flows (`skip`)."
    )
