"""Several files that are read as one set: what they must have in common, and what they share."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from lightning_farms.data.fields.indexing import Split
from lightning_farms.data.fields.pdebench import PDEBenchFile
from lightning_farms.data.fields.trajectories import Coordinates, FilePart, Trajectories

_SHOWN = 20


class FileSet:
    """Files with one image size after the strides."""

    def __init__(self, files: Sequence[PDEBenchFile], strides: Sequence[int], *, like: "FileSet | None" = None) -> None:
        self.files, self.strides = tuple(files), tuple(strides)
        sizes = [_img_size(file, stride) for file, stride in zip(files, strides, strict=True)]
        size_of, expected = (files[0], sizes[0]) if like is None else (like.files[0], like.img_size)
        for file, size in zip(files, sizes, strict=True):
            if size != expected:
                raise ValueError(
                    f"Expected all files to have as many cells along each side, after the stride, as {size_of.path}, "
                    f"{expected}, but {file.path} has {size}. Give `stride` as a list with one number for each file."
                )
        self.img_size: int = sizes[0]

    def check_usable(self, parts: Sequence[Sequence[int]], purpose: str) -> None:
        """Refuse flows that HDF5 would make up, no flow at all, and, but for predicting, files of predictions."""
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
            if not numbers:
                raise ValueError(
                    f"Expected {file.path} to have flows left for the part {purpose!r}, but `skip` leaves none."
                )

    def trajectories(self, parts: Sequence[Sequence[int]], *, time_stride: int) -> Trajectories:
        """Some trajectories of each file as one sequence."""
        chosen = [FilePart(*part) for part in zip(self.files, parts, self.strides, strict=True)]
        return Trajectories(chosen, time_stride=time_stride)

    def splits(self, split: Callable[[int], Split]) -> list[Split]:
        """Split each file for itself."""
        return [split(file.shape.trajectories) for file in self.files]

    def coordinates(self, time_stride: int) -> Coordinates:
        """The coordinates that all files have in common, after the strides."""
        x = _common([_every(file.x, file.shape.x, stride) for file, stride in self._strided()])
        y = _common([_every(file.y, file.shape.y, stride) for file, stride in self._strided()])
        return Coordinates(x, y, _common([_every(file.t, file.shape.frames, time_stride) for file in self.files]))

    def physics(self) -> dict[str, float]:
        """Those of the attributes eta, zeta and M that all files have, with one value."""
        known = [{"eta": file.eta, "zeta": file.zeta, "M": file.mach} for file in self.files]
        shared = {name: value for name, value in known[0].items() if all(other[name] == value for other in known)}
        return {name: value for name, value in shared.items() if value is not None}

    def close(self) -> None:
        """Close all files; they open again when read."""
        for file in self.files:
            file.close()

    def _strided(self) -> list[tuple[PDEBenchFile, int]]:
        return list(zip(self.files, self.strides, strict=True))


def _img_size(file: PDEBenchFile, stride: int) -> int:
    size = tuple(file.shape[2:])
    if size[0] != size[1]:
        raise ValueError(f"Expected {file.path} to have as many cells along x as along y, but got {size}.")
    return strided_size(size[0], stride)


def strided_size(resolution: int, stride: int) -> int:
    """Cells along a side after the stride."""
    if resolution % stride:
        raise ValueError(
            f"Expected argument `stride` to divide the resolution {resolution} of the data, but got {stride}."
        )
    return resolution // stride


def _every(values: Tensor | None, count: int, stride: int) -> Tensor | None:
    """Every stride-th of the first ``count`` values: PDEBench's files have one time more than frames."""
    return None if values is None or len(values) < count else values[:count:stride]


def _common(values: Sequence[Tensor | None]) -> Tensor | None:
    first = values[0]
    if first is None:
        return None
    same = all(other is not None and other.shape == first.shape and torch.allclose(other, first) for other in values)
    return first if same else None
