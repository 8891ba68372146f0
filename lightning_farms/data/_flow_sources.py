"""Which files are read for a purpose, such as training, and which of their flows are used for it."""

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from lightning.pytorch.utilities import rank_zero_warn

from lightning_farms.data._lineage import Flows
from lightning_farms.data.fields._arguments import Paths, skipped, source_of, without
from lightning_farms.data.fields._file_set import FileSet
from lightning_farms.data.fields.indexing import Split, SplitName, check_split, split_trajectories
from lightning_farms.data.fields.trajectories import Trajectories
from lightning_farms.data.fields.trajectory_files import FlowFile, are_trajectories, common_folder, open_flows

_SAME_WIDTH = 1.1  # coordinates of corners and of centres differ by one cell in total


class Choice(NamedTuple):
    """Settings that decide which flows are used for which purpose."""

    split: SplitName
    fractions: Mapping[str, float]
    subset_seed: int
    skip: Sequence[int] | Mapping[str, Sequence[int]] | None
    beside: Mapping[str, Any] = {}  # further settings of reading that a checkpoint keeps

    def settings(self) -> dict[str, Any]:
        """Return the settings as plain values."""
        chosen = {"split": self.split, "subset_seed": self.subset_seed, "skip": self.skip}
        return {**chosen, **self.fractions, **self.beside}


class Part(NamedTuple):
    """The trajectories of a purpose, and the files that they come from."""

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
        self._told: set[str] = set()
        self.split(1)  # refuses wrong arguments now

    def files(self, purpose: str = "train") -> FileSet:
        """Return the files of a purpose, opened at the first call; their headers are kept."""
        name = source_of(purpose, self.val, self.test, self.choice.fractions["val_fraction"])
        if name not in self._opened:
            if name == "train":
                readers = self._readers(self.paths)
                self._opened[name] = FileSet(readers, self.strides[: len(readers)])
            else:
                readers = self._readers(_listed((self.val if name == "val" else self.test) or []))
                self._opened[name] = FileSet(readers, self.strides[:1] * len(readers), like=self.files())
        return self._opened[name]

    def part(self, purpose: str, *, time_stride: int, used: bool = True) -> Part:
        """Return the trajectories of a purpose; with `used`, refuse unreadable ones and list the flows by file."""
        files = self.files(purpose)
        if purpose == "predict" or files is not self.files():
            numbers: list[Sequence[int]] = [range(file.shape.trajectories) for file in files.files]
        else:
            splits = files.splits(self.split)
            numbers = [getattr(split, purpose) for split in splits]
            if used:
                self._check(files, splits, purpose)
        numbers = without(numbers, self._left_out(files))
        if used:
            files.check_usable(numbers, purpose)
        named = zip(files.files, numbers, strict=True) if used else ()
        flows = [Flows(file.path, part, file.identity()) for file, part in named]
        return Part(files.trajectories(numbers, time_stride=time_stride), flows)

    def scales(self, time_stride: int) -> dict[str, float | None]:
        """Return the time step and cell width of the files opened so far, None if these have none in common."""
        steps = [step for files in self._opened.values() for step in files.steps(time_stride)]
        widths = [width for files in self._opened.values() for width in files.widths()]
        return {
            "time_step": steps[0] if len({f"{step:.4g}" for step in steps}) == 1 else None,
            "cell_width": widths[0] if widths and max(widths) <= _SAME_WIDTH * min(widths) else None,
        }

    def split(self, count: int) -> Split:
        """Split the trajectories of a file that has `count` of them."""
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

    def _readers(self, paths: Sequence[Path]) -> list[FlowFile]:
        self._are_one_set(paths)
        return open_flows(paths, left_out=self._skipped, **self.layout)

    def _are_one_set(self, paths: Sequence[Path]) -> bool:
        """Return whether these are several files of one trajectory each; refuse several strides for such files."""
        one_each = are_trajectories(self.layout["fields"], self.layout["axes"])
        if one_each and len(set(self.strides)) > 1:
            raise ValueError(
                f"Expected argument `stride` to be one number for files of one trajectory each, but got "
                f"{list(self.strides)}."
            )
        return one_each and len(paths) > 1

    def tell_remarks(self, purposes: Sequence[str], time_stride: int) -> None:
        """Warn, once, of what is odd about the files of some purposes, and of time steps or cells that differ."""
        sets = list({id(files): files for files in map(self.files, ("train", *purposes))}.values())
        steps = {f"{step:.4g}" for files in sets for step in files.steps(time_stride)}
        found = [remark for files in sets for remark in files.remarks()]
        if len(steps) > 1:
            found.append(
                f"The files' frames are {' or '.join(sorted(steps, key=float))} apart in time, but nothing tells the "
                "network which: it learns a mixture, or is tested on another step than in its training. Give files of "
                "one time step."
            )
        widths = sorted(width for files in sets for width in files.widths())
        if widths and widths[-1] > _SAME_WIDTH * widths[0]:
            found.append(
                f"The files' cells are {widths[0]:.4g} to {widths[-1]:.4g} wide along x, but nothing tells the network "
                "which: it learns a mixture, or is tested on another width than in its training. Give files of one "
                "width, or `stride` as a list with one number for each file."
            )
        for remark in found:
            if remark not in self._told:
                self._told.add(remark)
                rank_zero_warn(remark)

    @cached_property
    def _skipped(self) -> dict[Path, set[int]]:
        """Return {file, or folder of a set of files: numbers of the trajectories to skip}."""
        sets = [list(self.paths), *(_listed(each) for each in (self.val, self.test) if each is not None)]
        names = [name for paths in sets for name in ([common_folder(paths)] if self._are_one_set(paths) else paths)]
        return skipped(self.choice.skip, names)

    def _left_out(self, files: FileSet) -> list[set[int]]:
        """Return the numbers of the trajectories to skip in each file."""
        for file in files.files:
            beyond = [
                number for number in sorted(self._skipped.get(file.path, ())) if number >= file.shape.trajectories
            ]
            if beyond:
                raise ValueError(
                    f"Expected argument `skip` to name trajectories of {file.path}, which are numbered from 0 to "
                    f"{file.shape.trajectories - 1}, but got {beyond}."
                )
        return [self._skipped.get(file.path, set()) for file in files.files]


def check_scales(state: Mapping[str, Any], scales: Mapping[str, float | None], time_stride: int) -> None:
    """Warn if the time step or cell width is not that of the checkpoint's training, as far as they are known."""
    _check_step(state, scales["time_step"], time_stride)
    trained, now = state.get("cell_width"), scales["cell_width"]
    if trained is not None and now is not None and not trained / _SAME_WIDTH <= now <= trained * _SAME_WIDTH:
        rank_zero_warn(
            f"The cells are {now:.4g} wide along x, but were {trained:.4g} wide in the training of the checkpoint, and "
            "nothing tells the network. Choose `stride`, or the files, so that the widths agree."
        )


def _check_step(state: Mapping[str, Any], now: float | None, time_stride: int) -> None:
    trained, settings = state.get("time_step"), (state.get("lineage") or {}).get("settings", {})
    if trained is not None and now is not None:
        if f"{trained:.4g}" != f"{now:.4g}":
            rank_zero_warn(
                f"The frames are {now:.4g} apart in time, but were {trained:.4g} apart in the training of the "
                "checkpoint, and the network predicts the step that it was trained on. Choose `time_stride`, or the "
                "files, so that the steps agree."
            )
    elif settings.get("time_stride", time_stride) != time_stride:
        rank_zero_warn(
            f"`time_stride` is {time_stride}, but was {settings['time_stride']} in the training of the checkpoint, and "
            "the network predicts the step that it was trained on. Not all files tell the time of their frames: make "
            "sure that the steps agree."
        )


def _listed(paths: Path | list[Path]) -> Sequence[Path]:
    return paths if isinstance(paths, list) else [paths]
