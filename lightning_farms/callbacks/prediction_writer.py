"""Write predicted flows to an HDF5 file in PDEBench's layout."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

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
from lightning_farms.data.fields.prediction_file import Origin, PredictionHeader, PredictionShare, join_shares
from lightning_farms.data.fields.windows import EvaluationTrajectories

_NAME = "predictions.hdf5"
_LAYOUT = "(batch, X, Y, frames, channels)"


class PredictionWriter(BasePredictionWriter):
    """Writes what ``trainer.predict`` yields to one HDF5 file in PDEBench's layout.

    The file holds the given frames followed by the predicted ones, in physical units, so that it lines up with the
    file predicted from, and is itself one that :class:`~lightning_farms.data.CFDDataModule` reads:

    =================================  ================================================================================
    density, pressure, Vx, Vy          (trajectories, frames, X, Y), float32; named by the data module's ``channels``
    x-, y-, t-coordinate               of the cells and frames, t with one entry more; their numbers, where the data
                                       module has no ``coordinates``
    trajectory, source-file            number of each trajectory in its file, and that file
    ``eta``, ``zeta``, ``M``           attributes, from the data module's ``physics``
    ``given_frames``, ``channels``     attributes: number of frames that were given, and the channels in their order
    ``checkpoint``                     attribute, the checkpoint predicted with, if any
    =================================  ================================================================================

    Batches must be pairs whose first part is the given frames, and predictions tensors, both of shape
    (batch, X, Y, frames, channels), as with :class:`~lightning_farms.models.OperatorModule`; given frames pass through
    the data module's ``denormalize``, where it has one. Trajectories are in the order of the data set. Every batch is
    written as it comes, and the file appears under its name when it is complete, or not at all. Under a distributed
    strategy each process writes a share into the same folder, which all must see; process zero joins them. With
    ``trainer.predict(..., return_predictions=False)`` the predictions are not kept in memory besides. Under
    ``fast_dev_run`` no file is left. What goes wrong in writing ends the prediction.

    Args:
        path: file to write; ``predictions.hdf5`` in the logger's folder (or the Trainer's ``default_root_dir``) when
            left out.
        overwrite: whether to replace an existing file; otherwise it is refused before anything is predicted.

    Attributes:
        written: the file of the last prediction, None before.

    Raises:
        FileExistsError: ``path`` exists, when the prediction is set up.
        MisconfigurationException: there are several data loaders, when the prediction starts.
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
        self._stem = ""  # of the shares' names
        self._share: PredictionShare | None = None
        self._origin: Callable[[int], Origin] = partial(Origin, "")

    @property
    def written(self) -> Path | None:
        """The file of the last prediction, None before; also where child processes have written it (``ddp_spawn``)."""
        results = self._handover.take()
        if results is not None:
            self._written = None if results["written"] is None else Path(results["written"])
        return self._written

    # ---- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Find where to write; refuse a file that exists."""
        if stage != "predict":
            return
        super().setup(trainer, pl_module, stage)
        folder = trainer.log_dir or trainer.default_root_dir  # on all processes: one tells the others
        self._target = Path(folder) / _NAME if self.path is None else self.path
        if self._target.is_dir() or (self._target.exists() and not self.overwrite):
            raise FileExistsError(
                f"Expected argument `path` of PredictionWriter to be a new file, but {self._target} exists. "
                "Remove it, give another path, or set `overwrite=True` to replace a file."
            )

    def on_predict_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse several data loaders; agree on names for the shares."""
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
        """Write a batch to this process's share."""
        predicted = _predicted(prediction)
        given = _given(trainer, batch, predicted)
        if self._share is None:
            channels = channel_names(_datamodule(trainer), predicted.shape[4])
            path = self._share_path(trainer.global_rank)
            self._share = PredictionShare(path, channels, given_frames=given.shape[3])
            self._origin = _origins(trainer)
        items = _items(trainer, batch_indices or _places(trainer, batch_idx), self._share.rows, len(predicted))
        self._share.append(torch.cat((given, predicted.float()), dim=3), items, [self._origin(item) for item in items])

    def on_predict_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the shares."""
        if self._share is not None:
            self._share.close()
        written = torch.tensor(self._share is not None, device=pl_module.device, dtype=torch.float32)
        shares = int(trainer.strategy.reduce(written, reduce_op="sum"))
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._join(trainer, shares)
        trainer.strategy.barrier("predictions are written")
        self._written = None if trainer.fast_dev_run else self._target  # type: ignore[attr-defined]
        self._discard()
        if trainer.is_global_zero:
            self._handover.give({"written": None if self._written is None else str(self._written)})

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave nothing behind."""
        self._discard()

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _share_path(self, rank: int) -> Path:
        assert self._target is not None
        return self._target.with_name(f".{self._target.name}.{rank}.{self._stem}.tmp")

    def _join(self, trainer: Trainer, expected: int) -> None:
        assert self._target is not None
        shares = [path for path in map(self._share_path, range(trainer.world_size)) if path.exists()]
        if len(shares) != expected:
            raise OSError(
                f"Expected the shares of {expected} processes in {self._target.parent}, but found {len(shares)}. "
                "Give PredictionWriter a `path` on a file system that all processes see."
            )
        joined = join_shares(self._target, shares, _header(trainer))
        rank_zero_info(f"Predictions of {joined.trajectories} trajectories are in {self._target}")
        if joined.not_finite:
            rank_zero_warn(
                f"{joined.not_finite} of the {joined.trajectories} predicted trajectories in {self._target} have "
                "values that are not finite; readers may refuse them."
            )

    def _discard(self) -> None:
        """Delete this process's share, if it is still there."""
        if self._share is not None:
            self._share.close()
            self._share.path.unlink(missing_ok=True)
            self._share, self._origin = None, partial(Origin, "")


def _predicted(prediction: object) -> Tensor:
    fields = prediction.get("prediction") if isinstance(prediction, Mapping) else prediction
    if not isinstance(fields, Tensor) or fields.ndim != 5:
        raise TypeError(
            f"Expected `predict_step` to return a tensor of shape {_LAYOUT}, but got {_described(fields)}. Return the "
            "predicted frames, as OperatorModule does, or leave out PredictionWriter."
        )
    return fields


def _given(trainer: Trainer, batch: object, predicted: Tensor) -> Tensor:
    """The frames before the predicted ones, in physical units."""
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
    """A batch's places as its sampler notes them: the package `pytorch_lightning` tells only its own writers."""
    sampler = getattr(_loader(trainer), "batch_sampler", None)
    seen = getattr(sampler, "seen_batch_indices", ())
    return seen[batch_idx] if batch_idx < len(seen) else None


def _items(trainer: Trainer, batch_indices: Sequence[int] | None, before: int, count: int) -> list[int]:
    """Places in the data set; running numbers where one process reads what has no places."""
    if batch_indices and not isinstance(getattr(_loader(trainer), "dataset", None), IterableDataset):
        return list(batch_indices)
    if trainer.world_size > 1:
        raise misconfiguration(
            "Expected a map-style data set, whose places tell the order of several processes' trajectories, but got "
            "none. Predict with one process, or give such a data set."
        )
    return list(range(before, before + count))


def _origins(trainer: Trainer) -> Callable[[int], Origin]:
    """File and number of each place's trajectory, as far as the data set tells them."""
    dataset = getattr(_loader(trainer), "dataset", None)
    if not isinstance(dataset, EvaluationTrajectories):
        return partial(Origin, "")
    parts = dataset.trajectories.parts
    return [Origin(str(part.file.path), number) for part in parts for number in part.trajectories].__getitem__


def _datamodule(trainer: Trainer) -> object:
    return getattr(trainer, "datamodule", None)


def _header(trainer: Trainer) -> PredictionHeader:
    data = _datamodule(trainer)
    coordinates = getattr(data, "coordinates", None)
    return PredictionHeader(
        x=getattr(coordinates, "x", None),
        y=getattr(coordinates, "y", None),
        t=getattr(coordinates, "t", None),
        physics=getattr(data, "physics", None),
        checkpoint=None if trainer.ckpt_path is None else str(trainer.ckpt_path),
    )
