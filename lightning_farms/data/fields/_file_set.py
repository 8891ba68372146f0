"""Several files that are read as one set: what they must have in common, and what they share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_farms.common.image_size import plain_size
from lightning_farms.common.texts import listed
from lightning_farms.data.fields._coordinates import spacing, time_step
from lightning_farms.data.fields.indexing import Split
from lightning_farms.data.fields.trajectories import Coordinates, FilePart, Trajectories
from lightning_farms.data.fields.trajectory_files import FlowFile

_SHOWN = 20


class FileSet:
    """Files that have the same grid after the strides."""

    def __init__(self, files: Sequence[FlowFile], strides: Sequence[int], *, like: "FileSet | None" = None) -> None:
        self.files, self.strides = tuple(files), tuple(strides)
        grids = [_grid(file, stride) for file, stride in zip(files, strides, strict=True)]
        grid_of, expected = (files[0], grids[0]) if like is None else (like.files[0], like.grid)
        for file, grid in zip(files, grids, strict=True):
            if grid != expected:
                raise ValueError(
                    f"Expected all files to have as many cells along each side, after the stride, as {grid_of.path}, "
                    f"{plain_size(expected)}, but {file.path} has {plain_size(grid)}. Give `stride` as a list with one "
                    "number for each file."
                )
        self.grid: tuple[int, int] = grids[0]
        self._check_no_copy(() if like is None else like.files)

    def remarks(self) -> list[str]:
        """Return what is odd about the files, in words: about their coordinates, and copies among them."""
        found = [f"In {file.path}, {remark}." for file in self.files for remark in file.remarks]
        known: dict[str, FlowFile] = {}
        first = {file: known.setdefault(file.identity(), file) for file in self.files} if len(self.files) > 1 else {}
        copies = [f"{file.path} is a copy of {other.path}" for file, other in first.items() if file is not other]
        if copies:
            found.append(f"Flows count twice: {listed(copies, shown=2)}.")
        return found[:_SHOWN]

    def _check_no_copy(self, others: Sequence[FlowFile]) -> None:
        """Refuse copies of files that are trained on, under whatever name."""
        known = {file.identity(): file for file in others}
        for file in self.files if known else ():
            other = known.get(file.identity())
            if other is not None:
                raise ValueError(
                    f"Expected {file.path} to hold other flows than {other.path}, which is trained on, but it is a "
                    "copy of it. Give a file of other flows, or none, so that a part of the flows is held out."
                )

    def steps(self, time_stride: int) -> list[float]:
        """Return the time from frame to frame after the stride, for each file that tells it."""
        found = [time_step(file.t, file.shape.frames, time_stride) for file in self.files]
        return [step for step in found if step is not None]

    def widths(self) -> list[float]:
        """Return the width of the cells along x after the stride, for each file that tells it."""
        found = [(spacing(file.x), stride) for file, stride in self._strided()]
        return [abs(width) * stride for width, stride in found if width is not None]

    @property
    def periodic(self) -> tuple[bool, bool] | None:
        """Whether the domain is periodic along x and y; None if not all files tell."""
        known = [file.periodic for file in self.files]
        told = [each for each in known if each is not None]
        return (all(x for x, _ in told), all(y for _, y in told)) if len(told) == len(known) else None

    @property
    def is_square(self) -> bool:
        """Whether x and y have equally many cells, of the same spacing and direction in all files that tell them."""
        cells = [(spacing(file.x), spacing(file.y)) for file in self.files]
        return self.grid[0] == self.grid[1] and all(
            x is None or y is None or abs(x - y) <= 1e-3 * abs(x) for x, y in cells
        )

    def check_usable(self, parts: Sequence[Sequence[int]], purpose: str) -> None:
        """Refuse flows that HDF5 would make up, an empty part and, except for predicting, files of predictions."""
        for file, numbers in zip(self.files, parts, strict=True):
            given = file.given_frames
            if purpose != "predict" and given is not None and given < file.shape.frames:
                raise ValueError(
                    f"Expected {file.path} to hold data, but it is a file of predictions: of its {file.shape.frames} "
                    f"frames, those from {given} on are a network's, which are no truth to train on or to compare "
                    f"with. Give the file that was predicted from."
                )
            lost = [number for number in numbers if number in file.made_up]
            if lost:
                more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
                raise ValueError(
                    f"Expected the trajectories of {file.path} to be stored, but {lost[:_SHOWN]}{more} are not: "
                    f"{file.made_up[lost[0]]}. HDF5 would make up their values. Complete the file, or leave them out "
                    "(`skip`)."
                )
        if not any(parts):
            raise ValueError(
                f"Expected {listed([str(file.path) for file in self.files], shown=2)} to have flows left for the part "
                f"{purpose!r}, but `skip` leaves none."
            )

    def trajectories(self, parts: Sequence[Sequence[int]], *, time_stride: int) -> Trajectories:
        """Return some trajectories of each file as one sequence."""
        chosen = [FilePart(*part) for part in zip(self.files, parts, self.strides, strict=True)]
        return Trajectories(chosen, time_stride=time_stride)

    def splits(self, split: Callable[[int], Split]) -> list[Split]:
        """Split each file on its own."""
        return [split(file.shape.trajectories) for file in self.files]

    def coordinates(self, time_stride: int) -> Coordinates:
        """Return the coordinates that all files have in common, after the strides."""
        x = _common([_every(file.x, file.shape.x, stride) for file, stride in self._strided()])
        y = _common([_every(file.y, file.shape.y, stride) for file, stride in self._strided()])
        return Coordinates(x, y, _common([_every(file.t, file.shape.frames, time_stride) for file in self.files]))

    def physics(self) -> dict[str, float]:
        """Return those of the attributes eta, zeta and M that all files have with the same value."""
        known = [{"eta": file.eta, "zeta": file.zeta, "M": file.mach} for file in self.files]
        shared = {name: value for name, value in known[0].items() if all(other[name] == value for other in known)}
        return {name: value for name, value in shared.items() if value is not None}

    def close(self) -> None:
        """Close all files; they open again when read."""
        for file in self.files:
            file.close()

    def _strided(self) -> list[tuple[FlowFile, int]]:
        return list(zip(self.files, self.strides, strict=True))


def _grid(file: FlowFile, stride: int) -> tuple[int, int]:
    return strided_size(file.shape.x, stride), strided_size(file.shape.y, stride)


def strided_size(resolution: int, stride: int) -> int:
    """Return the number of cells along a side after the stride."""
    if resolution % stride:
        raise ValueError(
            f"Expected argument `stride` to divide the resolution {resolution} of the data, but got {stride}."
        )
    return resolution // stride


def _every(values: Tensor | None, count: int, stride: int) -> Tensor | None:
    """Return every stride-th of the first ``count`` values: PDEBench's files have one time more than frames."""
    return None if values is None or len(values) < count else values[:count:stride]


def _common(values: Sequence[Tensor | None]) -> Tensor | None:
    first = values[0]
    if first is None:
        return None
    same = all(other is not None and other.shape == first.shape and torch.allclose(other, first) for other in values)
    return first if same else None
