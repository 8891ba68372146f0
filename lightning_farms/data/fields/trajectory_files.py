"""Files that hold one trajectory each, read as one set: DPOT's folders `train` and `test`."""

import os
import re
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lightning_farms.common.warning import warn_user
from lightning_farms.data.fields._coordinates import spacing, time_step, unlike_steps
from lightning_farms.data.fields._identity import identity_of_set
from lightning_farms.data.fields._values import Survey
from lightning_farms.data.fields.pdebench import ChannelOrder, FileShape, PDEBenchFile


class TrajectoryFiles:
    """Several HDF5 files with one trajectory each, numbered in the given order and read like a PDEBenchFile.

    DPOT's program keeps its sets like this: a folder with data_0.hdf5, data_1.hdf5, ..., each with a dataset `data`
    that has the axes x, y, frame and channel. Only the first file is opened immediately. Each other file is opened at
    its first read, and must hold fields of the same sizes.

    Args:
        paths: the files, at least one.
        fields: {channel: dataset}, in the order of the channels.
        axes: order of the datasets' axes: t frame, x, y, and c for components, last when left out.
        left_out: numbers of trajectories that will not be read; the others are compared with the first that is left.

    Raises:
        FileNotFoundError: if there is no first file.
        OSError: if it is not HDF5, or cut short.
        ValueError: if a dataset is missing or has other axes, or `axes` has one for trajectories.

    Example:
        >>> import tempfile, h5py, numpy
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     paths = [Path(folder) / f"data_{number}.hdf5" for number in range(3)]
        ...     for number, path in enumerate(paths):
        ...         with h5py.File(path, "w") as file:
        ...             file["data"] = numpy.full((8, 8, 5, 1), number + 1.0)
        ...     flows = TrajectoryFiles(paths, fields={"h": "data[0]"}, axes="xytc")
        ...     flows.shape, float(flows.read(2).mean())
        (FileShape(trajectories=3, frames=5, x=8, y=8), 3.0)
    """

    def __init__(
        self, paths: Sequence[Path], *, fields: Mapping[str, str], axes: str, left_out: Collection[int] = ()
    ) -> None:
        if not paths or "b" in axes:
            raise ValueError(
                f"Expected arguments `paths` and `axes` to be files and axes without a b (trajectory), but got "
                f"{len(paths)} files and {axes!r}."
            )
        self._paths, self._axes = tuple(paths), axes
        self._opened: dict[int, PDEBenchFile] = {}
        self._identity: str | None = None
        self._told_of: set[str] = set()  # axes whose differing steps were reported
        self.fields = dict(fields)
        self._first = next((number for number in range(len(paths)) if number not in left_out), 0)
        first = self._file(self._first)
        self.path = common_folder(paths)
        self.shape = FileShape(len(paths), *first.shape[1:])
        self.channels, self.given_frames = first.channels, first.given_frames
        self.x, self.y, self.t = first.x, first.y, first.t
        self.remarks = (*first.remarks, *_gaps(self._paths))
        self.eta, self.zeta, self.mach, self.periodic = first.eta, first.zeta, first.mach, first.periodic

    @property
    def made_up(self) -> dict[int, str]:
        """{trajectory: what is missing of it} for the files that have been opened so far."""
        return {number: file.made_up[0] for number, file in self._opened.items() if file.made_up}

    def identity(self) -> str:
        """Return what identifies these files, whatever folder they are in."""
        if self._identity is None:
            self._identity = identity_of_set(self._paths)
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
            ValueError: for arguments out of range, a file of other sizes, or values that no flow can have.
            OSError: if the file cannot be read.
        """
        if not 0 <= trajectory < len(self._paths):
            raise ValueError(f"Expected argument `trajectory` to be in [0, {len(self._paths)}), but got {trajectory}.")
        file = self._file(trajectory)
        try:
            return file.read(0, start, stop, stride=stride, time_stride=time_stride)
        except ValueError as error:
            raise ValueError(f"{error} In the set, it is trajectory {trajectory}.") from error

    def blocks(self) -> list[range]:
        """Return all frames, in runs of about 32 MB."""
        return self._file(self._first).blocks()

    def survey(self, trajectory: int, frames: range) -> Survey:
        """Examine some frames of one trajectory, at all cells.

        Args:
            trajectory: its number, in [0, B).
            frames: some of its frames.

        Returns:
            What is wrong with them, their extremes, repeated frames and digests.

        Raises:
            ValueError: for a file of other sizes, or one that HDF5 would make up.
            OSError: if the file cannot be read.
        """
        return self._file(trajectory).survey(0, frames)

    def close(self) -> None:
        """Close this process's handles; the next `read` opens new ones."""
        for file in self._opened.values():
            file.close()

    def _file(self, number: int) -> PDEBenchFile:
        if number not in self._opened:
            file = PDEBenchFile(self._paths[number], fields=self.fields, axes=self._axes)
            first = self._opened.get(self._first, file)
            if file.shape != first.shape:
                raise ValueError(
                    f"Expected {file.path} to hold fields of the sizes of {first.path}, "
                    f"{tuple(first.shape[1:])} frames and cells, but got {tuple(file.shape[1:])}. "
                    f"Leave it out (`skip: [{number}]`)."
                )
            file.told = first.told  # one warning for all files
            self._compare(first, file)
            self._opened[number] = file
        return self._opened[number]

    def _compare(self, first: PDEBenchFile, other: PDEBenchFile) -> None:
        """Warn, once for each axis, if the time step or cell width is not that of the first file."""
        for axis, one, two in zip("txy", _steps(first), _steps(other), strict=True):
            unlike = unlike_steps(axis, (str(first.path), one), (str(other.path), two))
            if unlike and axis not in self._told_of:
                self._told_of.add(axis)
                warn_user(f"{unlike}.")


def _steps(file: PDEBenchFile) -> tuple[float | None, float | None, float | None]:
    """Return the time step, and the widths of the cells along x and y."""
    return time_step(file.t, file.shape.frames), spacing(file.x), spacing(file.y)


FlowFile = PDEBenchFile | TrajectoryFiles
"""Either reader of flows."""


def are_trajectories(fields: Mapping[str, str] | None, axes: str) -> bool:
    """Whether each file of a layout holds one trajectory, which means that no axis and no pattern is for trajectories.

    Args:
        fields: {channel: dataset}, None for PDEBench's.
        axes: order of the datasets' axes.

    Returns:
        Whether it does.

    Example:
        >>> are_trajectories({"h": "data[0]"}, "xytc"), are_trajectories({"h": "*/data[0]"}, "txy")
        (True, False)
    """
    return fields is not None and "b" not in axes and not any("*" in name for name in fields.values())


def open_flows(
    paths: Sequence[Path],
    *,
    channel_order: ChannelOrder = "dpot",
    fields: Mapping[str, str] | None = None,
    axes: str = "btxy",
    left_out: Mapping[Path, Collection[int]] | None = None,
) -> list[FlowFile]:
    """Open files of flows; several that hold one trajectory each are opened as one set.

    Args:
        paths: the files, at least one.
        channel_order: order of the channels of PDEBench's files.
        fields: {channel: dataset} of other files.
        axes: order of the datasets' axes.
        left_out: {file, or common folder of a set of files: numbers of trajectories that will not be read}.

    Returns:
        A reader for each file, or one for all.

    Raises:
        FileNotFoundError: if there is no such file.
        OSError: if one is not HDF5, or cut short.
        ValueError: if a dataset is missing or unsuitable.
    """
    if fields is not None and len(paths) > 1 and are_trajectories(fields, axes):
        numbers = (left_out or {}).get(common_folder(paths), ())
        return [TrajectoryFiles(paths, fields=fields, axes=axes, left_out=numbers)]
    return [
        PDEBenchFile(
            path, channel_order=channel_order, fields=fields, axes=axes, left_out=(left_out or {}).get(path, ())
        )
        for path in paths
    ]


def common_folder(paths: Sequence[Path]) -> Path:
    """Return the innermost folder that all files lie in, directly or in its subfolders.

    Args:
        paths: at least one.

    Returns:
        The folder.

    Example:
        >>> common_folder([Path("set/train/0.hdf5"), Path("set/train/1.hdf5")]).as_posix()
        'set/train'
    """
    return Path(os.path.commonpath([path.parent for path in paths]))


def _gaps(paths: Sequence[Path]) -> list[str]:
    """Return what the numbers in the names say about missing files."""
    numbers = {int(found[-1]) for path in paths if (found := re.findall(r"\d+", path.stem))}
    lacking = sorted(set(range(min(numbers), max(numbers) + 1)) - numbers) if len(numbers) == len(paths) else []
    return [f"the files are numbered to {max(numbers)}, but there is none of number {lacking[0]}"] if lacking else []
