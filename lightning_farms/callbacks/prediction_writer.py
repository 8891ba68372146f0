"""A callback that writes predicted flows to an HDF5 file in PDEBench's layout."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Collection, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import BasePredictionWriter
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor
from torch.utils.data import IterableDataset

from lightning_farms.callbacks._handover import Handover
from lightning_farms.common.channels import channel_names
from lightning_farms.common.lightning_packages import misconfiguration
from lightning_farms.common.quantities import counted
from lightning_farms.data.fields.prediction_file import (
    Origin,
    PredictionHeader,
    PredictionPart,
    create_part,
    finish_parts,
)
from lightning_farms.data.fields.prediction_parts import digest_of, done_items, part_path, parts_of
from lightning_farms.data.fields.windows import EvaluationTrajectories

_NAME = "predictions.hdf5"
_ROOM = 256  # trajectories per part, if their number is not known
_LAYOUT = "(batch, X, Y, frames, channels)"


@runtime_checkable
class Resumable(Protocol):
    """A data module with which an interrupted prediction can be resumed, such as CFDDataModule."""

    left_out: Callable[[], Collection[int]] | None
    """Returns the items that are predicted already; called when the loader of the others is built."""

    def prediction_settings(self) -> dict[str, Any]:
        """Return everything that the predictions depend on, except the network.

        Returns:
            Plain values, equal for equal items.
        """


class PredictionWriter(BasePredictionWriter):
    """Writes the predictions of ``trainer.predict`` to one HDF5 file in PDEBench's layout.

    The file holds the given frames followed by the predicted ones, in physical units, so that it lines up with the file
    that was predicted from, and can itself be read by :class:`~lightning_farms.data.CFDDataModule`:

    =================================  ================================================================================
    density, pressure, Vx, Vy          (trajectories, frames, X, Y), float32; named by the data module's ``channels``
    state                              (trajectories,): 1 if all values are finite, 2 if some are not
    x-, y-, t-coordinate               coordinates of cells and frames, t with one entry more; their numbers if the data
                                       module has no ``coordinates``
    trajectory, source-file            number of each trajectory in its file, and that file
    ``eta``, ``zeta``, ``M``           attributes, from the data module's ``physics``
    ``given_frames``, ``channels``     attributes: number of frames that were given, and the channels in their order
    ``checkpoint``                     attribute: the checkpoint that the predictions were made with, if any
    ``settings``                       attribute, as JSON: flows by the identity of their files, weights, precision
    =================================  ================================================================================

    Batches must be pairs whose first part is the given frames, and predictions must be tensors, both of shape
    (batch, X, Y, frames, channels), as with :class:`~lightning_farms.models.OperatorModule`; given frames pass through
    the data module's ``denormalize`` if it has one. Trajectories are in the order of the data set. Every batch is
    written when it has been predicted, and the file appears under its name when it is complete, or not at all. Until
    then it is ``<name>.0.part``, which has its final size (under a distributed strategy there is one for each process,
    and all processes must see the folder). With ``trainer.predict(..., return_predictions=False)`` the predictions are
    not also kept in memory. Under ``fast_dev_run`` no file is left. Errors in writing end the prediction.

    If a prediction with a :class:`~lightning_farms.data.CFDDataModule` is interrupted, in whatever way, its part is
    kept, and the same prediction to the same ``path`` (not to a new folder of a logger that numbers its runs) resumes
    with the trajectories that are missing; a part of other flows, weights or settings is refused. Other predictions are
    written to hidden temporary files, start anew and leave nothing behind.

    Args:
        path: file to write; by default ``predictions.hdf5`` in the logger's folder (or the Trainer's
            ``default_root_dir``).
        overwrite: whether to replace an existing file, and parts of other settings; otherwise they are refused before
            anything is predicted.

    Attributes:
        written: the file of the last prediction; None before.

    Raises:
        FileExistsError: ``path`` exists, or is one of the files that are predicted from (when the prediction is set
            up); or there is a part of other settings (when the prediction starts).
        MisconfigurationException: there are several data loaders (when the prediction starts).
        TypeError: a batch or a prediction is of another kind.

    Example:
        >>> writer = PredictionWriter("flows/predicted.hdf5", overwrite=True)
    """

    def __init__(self, path: str | Path | None = None, *, overwrite: bool = False) -> None:
        super().__init__("batch")
        self.path = None if path is None else Path(path)
        self.overwrite = overwrite
        self._written: Path | None = None
        self._handover = Handover()
        self._target: Path | None = None
        self._stem = ""  # part of the names of temporary files that cannot be resumed
        self._settings: dict[str, Any] | None = None
        self._parts: list[PredictionPart] = []
        self._rows = 0

    @property
    def written(self) -> Path | None:
        """The file of the last prediction; None before. It may have been written by child processes (``ddp_spawn``)."""
        results = self._handover.take()
        if results is not None:
            self._written = None if results["written"] is None else Path(results["written"])
        return self._written

    # ---- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find where to write, refuse a file that exists, and prepare to resume an interrupted prediction."""
        if stage != "predict":
            return
        super().setup(trainer, pl_module, stage)
        folder = trainer.log_dir or trainer.default_root_dir  # a collective: one process tells the others
        self._target = Path(folder) / _NAME if self.path is None else self.path
        if self._target.is_dir() or (self._target.exists() and not self.overwrite):
            raise FileExistsError(
                f"Expected argument `path` of PredictionWriter to be a new file, but {self._target} exists. "
                "Remove it, give another path, or set `overwrite=True` to replace a file."
            )
        sources = [file for file in _files_read(trainer) if file.exists()]
        if self._target.exists() and any(file.samefile(self._target) for file in sources):
            raise FileExistsError(
                f"Expected argument `path` of PredictionWriter to be another file than those that are predicted from, "
                f"but got {self._target}, which `overwrite` would destroy. Give another path."
            )
        self._settings, self._parts, self._rows = None, [], 0
        limit, data = trainer.limit_predict_batches, _datamodule(trainer)
        if isinstance(data, Resumable):
            whole = isinstance(limit, float) and limit == 1 and not trainer.fast_dev_run  # type: ignore[attr-defined]
            data.left_out = partial(self._done, trainer, pl_module, data) if whole else None

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse several data loaders, and agree on names for the parts."""
        loaders = len(trainer.num_predict_batches)
        if loaders > 1:
            raise misconfiguration(
                f"PredictionWriter writes the trajectories of one data loader to one file, but got {loaders} data "
                "loaders. Call `trainer.predict` once for each, with a path of its own."
            )
        self._stem = trainer.strategy.broadcast(uuid.uuid4().hex)

    def write_on_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        prediction: object,
        batch_indices: Sequence[int] | None,
        batch: object,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        """Write a batch to this process's part."""
        predicted = _predicted(prediction)
        given = _given(trainer, batch, predicted)
        items = _items(trainer, batch_indices or _places(trainer, batch_idx), self._rows, len(predicted))
        fields = torch.cat((given, predicted.float()), dim=3)
        start = 0
        while start < len(items):  # a batch may fill up a part
            part = self._part_for(trainer, items[start], fields, given.shape[3])
            own = [item for item in items[start:] if item in part.items]
            part.write(fields[start : start + len(own)], own)
            start += len(own)
        self._rows += len(items)

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the parts into one file."""
        self._close()
        count = torch.tensor(len(self._parts), device=pl_module.device, dtype=torch.float32)
        expected = int(trainer.strategy.reduce(count, reduce_op="sum"))
        dry = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if trainer.is_global_zero and not dry:
            self._finish(trainer, expected)
        trainer.strategy.barrier("predictions are written")
        self._written = None if dry else self._target
        self._discard(trainer)
        if trainer.is_global_zero:
            self._handover.give({"written": None if self._written is None else str(self._written)})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Keep what can be resumed, and report it; leave nothing else behind."""
        if self._settings is not None and self._parts:
            done = sum(len(part.done) for part in self._parts)
            kept = ", ".join(str(part.path) for part in self._parts)
            self._close()
            self._parts = []
            if done:
                trajectories = counted(done, "predicted trajectory", "predicted trajectories")
                rank_zero_info(f"Kept in {kept}: {trajectories}. {self._way_to_go_on(trainer)}")
        self._discard(trainer)

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _done(self, trainer: Trainer, pl_module: LightningModule, data: Resumable) -> Sequence[int]:
        """Places of the trajectories that an interrupted prediction has written; process zero tells the others."""
        assert self._target is not None
        found: tuple[dict[str, Any], list[int]] | Exception = ({}, [])
        if trainer.is_global_zero:
            settings = {
                **data.prediction_settings(),
                "weights": digest_of(pl_module),
                "precision": str(trainer.precision),
            }
            try:
                found = settings, done_items(self._target, settings, overwrite=self.overwrite)
            except (OSError, ValueError) as error:
                found = error
        found = trainer.strategy.broadcast(found)
        if isinstance(found, Exception):
            raise found
        self._settings, done = found
        if done:
            rank_zero_info(
                f"Going on with {self._target}, which has {counted(len(done), 'trajectory', 'trajectories')} already."
            )
        return done

    def _way_to_go_on(self, trainer: Trainer) -> str:
        """Tell how the next prediction finds this one's part: a logger may give it another folder."""
        if self.path is not None or not trainer.loggers:
            return "The same prediction goes on from there."
        return (
            f"The same prediction goes on from there with PredictionWriter({str(self._target)!r}), on the command line "
            f"with `--trainer.callbacks+=PredictionWriter --trainer.callbacks.path={self._target}`."
        )

    def _part_for(self, trainer: Trainer, item: int, fields: Tensor, given_frames: int) -> PredictionPart:
        """Return the part that has a place for an item; create or open it if necessary."""
        for part in self._parts:
            if item in part.items:
                return part
        header = _header(trainer, fields.shape[4], given_frames, self._settings)
        origins = _origins(trainer)
        first = 0 if origins is not None else item
        origins = [Origin("", place) for place in range(item, item + _ROOM)] if origins is None else origins
        path = self._part_path(trainer.global_rank, len(self._parts))
        frames, x, y = fields.shape[3], fields.shape[1], fields.shape[2]
        found = self._settings is not None and path.exists()
        part = PredictionPart(path) if found else create_part(path, header, (frames, x, y), origins, first=first)
        self._parts.append(part)
        return part

    def _part_path(self, rank: int, number: int) -> Path:
        assert self._target is not None
        if self._settings is not None:
            return part_path(self._target, rank)
        return self._target.with_name(f".{self._target.name}.{rank}-{number}.{self._stem}.tmp")

    def _finish(self, trainer: Trainer, expected: int) -> None:
        assert self._target is not None
        hidden = self._target.parent.glob(f".*.{self._stem}.tmp")
        paths = parts_of(self._target) if self._settings is not None else sorted(hidden, key=_numbers)
        if len(paths) < expected:
            raise OSError(
                f"Expected the parts of {expected} processes in {self._target.parent}, but found {len(paths)}. "
                "Give PredictionWriter a `path` on a file system that all processes see."
            )
        parts = [PredictionPart(path) for path in paths]
        header = _header(trainer, len(parts[0].channels), parts[0].given_frames, self._settings)
        joined = finish_parts(self._target, parts, header)
        rank_zero_info(
            f"Predictions of {counted(joined.trajectories, 'trajectory', 'trajectories')} are in {self._target}"
        )
        if joined.not_finite:
            rank_zero_warn(
                f"{joined.not_finite} of the {joined.trajectories} predicted trajectories in {self._target} have "
                "values that are not finite; readers may refuse them."
            )

    def _close(self) -> None:
        for part in self._parts:
            part.close()

    def _discard(self, trainer: Trainer) -> None:
        """Close this process's parts, and delete those that still exist."""
        self._close()
        for part in self._parts:
            part.path.unlink(missing_ok=True)
        self._parts, self._settings = [], None
        data = _datamodule(trainer)
        if isinstance(data, Resumable):
            data.left_out = None


def _predicted(prediction: object) -> Tensor:
    fields = prediction.get("prediction") if isinstance(prediction, Mapping) else prediction
    if not isinstance(fields, Tensor) or fields.ndim != 5:
        raise TypeError(
            f"Expected `predict_step` to return a tensor of shape {_LAYOUT}, but got {_described(fields)}. Return the "
            "predicted frames, as OperatorModule does, or leave out PredictionWriter."
        )
    return fields


def _given(trainer: Trainer, batch: object, predicted: Tensor) -> Tensor:
    """Return the frames before the predicted ones, in physical units."""
    fields = batch[0] if isinstance(batch, Sequence) and batch else batch
    if not isinstance(fields, Tensor) or fields.ndim != 5:
        raise TypeError(
            f"Expected a batch to be a pair whose first part is the given frames {_LAYOUT}, but got "
            f"{_described(fields)}. Load such pairs, as CFDDataModule does, or leave out PredictionWriter."
        )
    denormalize = getattr(_datamodule(trainer), "denormalize", None)
    given: Tensor = fields if denormalize is None else denormalize(fields)
    return given.to(predicted.device, torch.float32)


def _described(value: object) -> str:
    return f"shape {tuple(value.shape)}" if isinstance(value, Tensor) else type(value).__name__


def _loader(trainer: Trainer) -> object:
    return CombinedLoader(trainer.predict_dataloaders).flattened[0]


def _places(trainer: Trainer, batch_idx: int) -> Sequence[int] | None:
    """A batch's places as its sampler records them: the package `pytorch_lightning` passes them only to its writers."""
    sampler = getattr(_loader(trainer), "batch_sampler", None)
    seen = getattr(sampler, "seen_batch_indices", ())
    return seen[batch_idx] if batch_idx < len(seen) else None


def _items(trainer: Trainer, batch_indices: Sequence[int] | None, before: int, count: int) -> list[int]:
    """A batch's places in the data set; running numbers if one process reads a data set without places."""
    if batch_indices and not isinstance(getattr(_loader(trainer), "dataset", None), IterableDataset):
        return list(batch_indices)
    if trainer.world_size > 1:
        raise misconfiguration(
            "Expected a map-style data set, whose places tell the order of several processes' trajectories, but got "
            "none. Predict with one process, or give such a data set."
        )
    return list(range(before, before + count))


def _origins(trainer: Trainer) -> list[Origin] | None:
    """File and number of each place's trajectory, as far as the data set knows them; None if it has no places."""
    dataset = getattr(_loader(trainer), "dataset", None)
    if isinstance(dataset, EvaluationTrajectories):
        parts = dataset.trajectories.parts
        return [Origin(str(part.file.path), number) for part in parts for number in part.trajectories]
    if isinstance(dataset, IterableDataset) or not isinstance(dataset, Sized):
        return None
    return [Origin("", place) for place in range(len(dataset))]


def _numbers(path: Path) -> tuple[int, ...]:
    """Process and number of a part, read from its name."""
    return tuple(map(int, path.name.rsplit(".", 3)[1].split("-")))


def _files_read(trainer: Trainer) -> list[Path]:
    """The files that a data module of flows reads."""
    data = _datamodule(trainer)
    test = getattr(data, "test_path", None) or []
    return [*getattr(data, "data_paths", ()), *(test if isinstance(test, list) else [test])]


def _datamodule(trainer: Trainer) -> object:
    return getattr(trainer, "datamodule", None)


def _header(trainer: Trainer, channels: int, given_frames: int, settings: Mapping[str, Any] | None) -> PredictionHeader:
    data = _datamodule(trainer)
    coordinates = getattr(data, "coordinates", None)
    return PredictionHeader(
        channels=channel_names(data, channels),
        given_frames=given_frames,
        x=getattr(coordinates, "x", None),
        y=getattr(coordinates, "y", None),
        t=getattr(coordinates, "t", None),
        physics=getattr(data, "physics", None),
        checkpoint=None if trainer.ckpt_path is None else str(trainer.ckpt_path),
        settings=settings,
    )
