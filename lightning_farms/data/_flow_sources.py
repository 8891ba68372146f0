"""Which files a purpose reads, and which of their flows are for it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from lightning_farms.data._lineage import Flows
from lightning_farms.data.fields._arguments import Paths, skipped, source_of, without
from lightning_farms.data.fields._file_set import FileSet
from lightning_farms.data.fields.indexing import Split, SplitName, check_split, split_trajectories
from lightning_farms.data.fields.pdebench import PDEBenchFile
from lightning_farms.data.fields.trajectories import Trajectories


class Choice(NamedTuple):
    """What decides which flows are for what."""

    split: SplitName
    fractions: Mapping[str, float]
    subset_seed: int
    skip: Sequence[int] | Mapping[str, Sequence[int]] | None


class Part(NamedTuple):
    """The trajectories of a purpose, and whose they are."""

    trajectories: Trajectories
    flows: list[Flows]


class FlowSources:
    """The files for training, validation and testing, opened once."""

    def __init__(
        self,
        paths: Sequence[Path],
        strides: Sequence[int],
        *,
        val: Paths,
        test: Paths,
        layout: Mapping[str, Any],
        choice: Choice,
    ) -> None:
        self.paths, self.strides = tuple(paths), tuple(strides)
        self.val, self.test, self.layout, self.choice = val, test, dict(layout), choice
        self._opened: dict[str, FileSet] = {}
        self.split(1)  # what is wrong with its arguments is told now

    def files(self, purpose: str = "train") -> FileSet:
        """Open the files of a purpose once; their headers are kept."""
        name = source_of(purpose, self.val, self.test, self.choice.fractions["val_fraction"])
        if name not in self._opened:
            if name == "train":
                self._opened[name] = FileSet(self._readers(self.paths), self.strides)
            else:
                paths = self.val if name == "val" else self.test
                readers = self._readers(paths if isinstance(paths, list) else [paths])
                strides = [self.strides[0]] * len(readers)
                self._opened[name] = FileSet(readers, strides, like=self.files())
        return self._opened[name]

    def part(self, purpose: str, *, time_stride: int, used: bool = True) -> Part:
        """The trajectories of a purpose; `used`: refuse those that cannot be read."""
        files = self.files(purpose)
        if purpose == "predict" or files is not self.files():
            numbers: list[Sequence[int]] = [range(file.shape.trajectories) for file in files.files]
        else:
            splits = files.splits(self.split)
            numbers = [getattr(split, purpose) for split in splits]
            if used:
                self._check(files, splits, purpose)
        left_out = skipped(self.choice.skip, self._all_paths())
        numbers = without(numbers, [left_out.get(file.path, set()) for file in files.files])
        if used:
            files.check_usable(numbers, purpose)
        flows = [Flows(file.path, part) for file, part in zip(files.files, numbers, strict=True)]
        return Part(files.trajectories(numbers, time_stride=time_stride), flows)

    def split(self, count: int) -> Split:
        """Split as many trajectories as a file has."""
        return split_trajectories(
            count,
            split=self.choice.split,
            subset_seed=self.choice.subset_seed,
            separate_test=self.test is not None,
            **self.choice.fractions,
        )

    def close(self) -> None:
        """Close all files; they open again when read."""
        for files in self._opened.values():
            files.close()

    def _check(self, files: FileSet, splits: Sequence[Split], purpose: str) -> None:
        for file, split in zip(files.files, splits, strict=True):
            count, source = file.shape.trajectories, str(file.path)
            check_split(split, count=count, purposes=(purpose,), source=source, **self.choice.fractions)

    def _readers(self, paths: Sequence[Path | None]) -> list[PDEBenchFile]:
        return [PDEBenchFile(path, **self.layout) for path in paths if path is not None]

    def _all_paths(self) -> list[Path]:
        more = [each for each in (self.val, self.test) if each is not None]
        return [*self.paths, *(path for each in more for path in (each if isinstance(each, list) else [each]))]
