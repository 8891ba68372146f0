"""A callback that draws a neural operator's predictions beside the truth, and its error over the frames."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_farms.callbacks._guard import guarded, guarded_at_start, warn
from lightning_farms.callbacks._handover import Handover
from lightning_farms.callbacks._kept import KeptCallback
from lightning_farms.callbacks._rollouts.drawings import Earlier, Evaluation, Names, rollout_pictures
from lightning_farms.callbacks._rollouts.record import Errors, RolloutRecord, expected_outputs, rollouts_of, spread
from lightning_farms.common.arguments import check_at_least
from lightning_farms.common.channels import channel_names
from lightning_farms.common.evaluation_shares import evaluation_loaders
from lightning_farms.common.faults import Faults
from lightning_farms.common.quantities import counted
from lightning_farms.common.warning import WarnOnce
from lightning_farms.loggers.pictures import hand_out
from lightning_farms.loggers.scalars import log_scalars
from lightning_farms.loggers.sinks import sinks
from lightning_farms.metrics.relative_l2_error import RelativeL2Error

_STATE_VERSION = 1
_LOGGED_FRAMES = 3  # first, middle, last
_UNDRAWN = "pictures of the rollouts could not be written"
_UNLOGGED = "errors of the rollouts could not be logged"
_UNEVEN = (
    "RolloutMonitor expected all rollouts of an evaluation to have as many frames and channels as the first, but some "
    "have other numbers. Those are left out of its errors and pictures."
)


class RolloutMonitor(KeptCallback):
    """Draws predicted fields beside the true ones, and the error over the frames, from validation and test rollouts.

    It uses what ``validation_step`` and ``test_step`` return: a mapping (such as that of
    :class:`~lightning_farms.models.OperatorModule`) with the tensors "prediction" and "target" of shape
    (batch, X, Y, frames, channels), and "given", the frames before them, after which frames are numbered. Names of
    channels and times of frames come from the data module's ``channels`` and ``coordinates`` if it has them. The
    training is not changed, and only what is drawn is kept in memory. The callback's own faults, in drawing, logging or
    summing up errors, are reported and stop nothing; errors raised by the module's steps are not touched.

    Log keys (``val``; for a test run ``test``, where they are written once; pictures go to TensorBoard, and, as far as
    they have a place for it, to Weights & Biases, MLflow and any logger with a ``log_image`` of Lightning's form):

    ================================  =================================================================================
    ``val/fields/<channel>``          truth, prediction and error of the first trajectory over a few frames, as a
                                      figure, every ``every_n_epochs`` and at the end; ``<channel>/2``: the second, ...
    ``val/error_over_time``           relative L2 error over the frames, one line per channel, with that of the first
                                      validation, of persistence and of the drift-free prediction, as a figure, as often
    ``val/l2re_frame/<number>``       relative L2 error of the first, the middle and the last frame, mean over channels,
                                      each validation; other callbacks can monitor them
    ``test/l2re_over_time/<channel>`` scalars whose step is the frame's number, so that TensorBoard draws the curve;
                                      ``<channel>`` is also ``mean``, ``persistence``, ``drift_free``
    ================================  =================================================================================

    With several data loaders, ``/dataloader_idx_<i>`` is appended. Errors are computed over space for each frame and
    channel, then averaged over all trajectories of all processes. Trajectories that a distributed sampler repeats are
    left out, and the first trajectories of process zero are drawn.

    Args:
        every_n_epochs: draw at the first validation after every n-th epoch, and at the end of training; 0: at the end
            only.
        samples: number of trajectories whose fields are drawn, at least 0.
        frames: number of frames drawn of each trajectory, spread from the first to the last predicted one, at least 1.

    Attributes:
        errors: relative L2 error in the last evaluation of the (first) data loader, a list over frames of lists over
            channels; None before.

    Raises:
        ValueError: a number is out of range.

    Example:
        >>> monitor = RolloutMonitor(every_n_epochs=20, samples=2)
    """

    def __init__(self, every_n_epochs: int = 10, *, samples: int = 1, frames: int = 5) -> None:
        check_at_least(0, every_n_epochs=every_n_epochs, samples=samples)
        check_at_least(1, frames=frames)
        self.every_n_epochs = every_n_epochs
        self.samples = samples
        self.frames = frames
        self._warn_once = WarnOnce(warn)
        self._faults = Faults(type(self).__name__, warn)
        self._handover = Handover()
        self._reset()

    def _reset(self) -> None:
        self._errors: Errors | None = None
        self._first: dict[str, Earlier] = {}  # by the suffix of the data loader
        self._drawn_after = 0  # complete epochs at the last drawing
        self._records: dict[int, RolloutRecord] = {}
        self._undrawn: list[Evaluation] = []

    @property
    def errors(self) -> Errors | None:
        """Relative L2 error in the last evaluation of the (first) data loader, by frame and channel; None before."""
        self._take_over()
        return self._errors

    # ---- state -------------------------------------------------------------------------------------------------------

    def _saved(self) -> dict[str, Any]:
        """The number of epochs at the last drawing, and the errors of the first validation."""
        first = {suffix: earlier._asdict() for suffix, earlier in self._first.items()}
        return {"version": _STATE_VERSION, "drawn_after": self._drawn_after, "first": first}

    def _restore(self, state: dict[str, Any]) -> None:
        version = state.get("version")
        if version != _STATE_VERSION:
            raise ValueError(
                f"Expected a {type(self).__name__} state of version {_STATE_VERSION}, but the checkpoint has "
                f"{version!r}; remove the callback's state from it or use the version that wrote it."
            )
        first = {suffix: Earlier(**earlier) for suffix, earlier in state["first"].items()}
        self._first, self._drawn_after = first, state["drawn_after"]

    def _results(self) -> dict[str, Any]:
        return {**super()._results(), "errors": self._errors}

    def _accept(self, results: dict[str, Any]) -> None:
        super()._accept(results)
        self._errors = results["errors"]

    # ---- hooks -------------------------------------------------------------------------------------------------------

    @guarded_at_start
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget an earlier run, and warn if there is no logger."""
        if stage == "fit" and trainer.global_step == 0 and trainer.current_epoch == 0:
            self._reset()
        if stage != "predict" and not trainer.loggers and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._warn_once(
                "logger",
                f"{type(self).__name__} has no logger to write to: its errors are still available. "
                "Give the Trainer a TensorBoardLogger to see fields and curves.",
            )

    @guarded
    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the records of the last evaluation."""
        self._records = {}

    @guarded
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch's errors, and keep the first trajectories."""
        self._add(trainer, "validation_step", outputs, dataloader_idx)

    @guarded
    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log errors, and draw if that is due; the sanity check is ignored."""
        if trainer.sanity_checking:
            return
        self._undrawn = self._evaluations(trainer, pl_module, "val")
        if trainer.state.fn != TrainerFn.FITTING:
            self._draw(trainer)
            return
        for evaluation in self._undrawn:
            self._first.setdefault(evaluation.suffix, Earlier(evaluation.when, evaluation.errors))
        often, epochs = self.every_n_epochs, _epochs(trainer)
        if often and epochs // often > self._drawn_after // often:
            self._drawn_after = epochs
            self._draw(trainer)

    @guarded
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the last validation."""
        self._draw(trainer)

    @guarded
    def on_test_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget the records of the last evaluation."""
        self._records = {}

    @guarded
    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: STEP_OUTPUT,
        batch: object,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Add the batch's errors, and keep the first trajectories."""
        self._add(trainer, "test_step", outputs, dataloader_idx)

    @guarded
    def on_test_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Log errors, also as curves over the frames, and draw."""
        self._undrawn = self._evaluations(trainer, pl_module, "test")
        for evaluation in self._undrawn:
            with self._faults.contained(_UNLOGGED):
                self._faults.say(_UNLOGGED, *_log_curves(trainer, evaluation))
        self._draw(trainer)

    @guarded
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give the errors to the process that made the callback, if this is its child."""
        self._hand_over(trainer)

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _add(self, trainer: Trainer, step: str, outputs: STEP_OUTPUT, loader: int) -> None:
        rollouts = rollouts_of(outputs)
        if isinstance(rollouts, str):
            self._warn_once(step, expected_outputs(step, rollouts))
            return
        if loader not in self._records:
            metric = RelativeL2Error(per="frame_and_channel").to(rollouts.target.device)
            names = partial(channel_names, getattr(trainer, "datamodule", None))
            self._records[loader] = RolloutRecord(metric, self.samples if sinks(trainer) else 0, self.frames, names)
        if not self._records[loader].add(rollouts, evaluation_loaders(trainer)[loader]):
            self._warn_once("frames", _UNEVEN)

    def _evaluations(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> list[Evaluation]:
        """Compute the errors over all processes, log them through the module, and return what is to be drawn."""
        found: list[Evaluation] = []
        several = len(evaluation_loaders(trainer)) > 1
        records, self._records = sorted(self._records.items()), {}
        for index, record in records:
            with self._faults.contained("errors of the rollouts could not be summed up"):
                suffix = f"/dataloader_idx_{index}" if several else ""
                found += self._evaluation(trainer, record, stage, suffix)
        for evaluation in found:
            with self._faults.contained(_UNLOGGED):
                scalars = _scalars(evaluation)
                pl_module.log_dict(scalars, add_dataloader_idx=False, sync_dist=trainer.world_size > 1)
        self._errors = found[0].errors if found else self._errors
        return found

    def _evaluation(self, trainer: Trainer, record: RolloutRecord, stage: str, suffix: str) -> list[Evaluation]:
        """Return a list with one evaluation, or none if the rollouts differ in shape; a collective."""
        try:
            errors, trivial = record.errors(), record.trivial_errors()
        except ValueError:  # on all processes
            self._warn_once("frames", _UNEVEN)
            return []
        names = _names(trainer, record.given, errors)
        when, step = _when(trainer), _step(trainer)
        return [Evaluation(stage, suffix, when, step, names, errors, trivial, record.kept, record.drawn)]

    def _draw(self, trainer: Trainer) -> None:
        """Draw the last evaluation, unless it has been drawn."""
        undrawn, self._undrawn = self._undrawn, []
        for evaluation in undrawn:
            earlier = self._first.get(evaluation.suffix) if evaluation.stage == "val" else None
            drawings = rollout_pictures(evaluation, earlier)
            self._faults.say(_UNDRAWN, *hand_out(drawings, sinks(trainer), evaluation.step))


def _names(trainer: Trainer, given: int, errors: Errors) -> Names:
    """Names of channels and times of frames from the data module, if it has as many as are needed."""
    numbers = list(range(given, given + len(errors)))
    data = getattr(trainer, "datamodule", None)
    t = getattr(getattr(data, "coordinates", None), "t", None)
    times = None if t is None or len(t) <= numbers[-1] else [float(t[number]) for number in numbers]
    return Names(channel_names(data, len(errors[0])), numbers, times)


def _scalars(evaluation: Evaluation) -> dict[str, float]:
    """The errors of a few frames, by their log keys."""
    start, frames, errors = f"{evaluation.stage}/l2re_frame", evaluation.names.frames, evaluation.errors
    shown = spread(len(errors), _LOGGED_FRAMES)
    return {f"{start}/{frames[i]}{evaluation.suffix}": _mean(errors[i]) for i in shown}


def _log_curves(trainer: Trainer, evaluation: Evaluation) -> list[Exception]:
    """Log one scalar per frame and channel, with the frame's number as its step; returns the loggers' errors."""
    errors: list[Exception] = []
    key = f"{evaluation.stage}/l2re_over_time"
    for index, (frame, row) in enumerate(zip(evaluation.names.frames, evaluation.errors, strict=True)):
        trivial = {name: values[index] for name, values in evaluation.trivial.items()}
        values = {**dict(zip(evaluation.names.channels, row, strict=True)), "mean": _mean(row), **trivial}
        scalars = {f"{key}/{name}{evaluation.suffix}": value for name, value in values.items()}
        errors += log_scalars(trainer, scalars, frame)
    return errors


def _mean(row: Sequence[float]) -> float:
    return sum(row) / len(row)


def _epochs(trainer: Trainer) -> int:
    """Number of complete epochs, including one whose last step is done."""
    return trainer.current_epoch + trainer.fit_loop.epoch_loop.batch_progress.is_last_batch


def _when(trainer: Trainer) -> str:
    """How long the network has been trained, in words; "" if this Trainer does not know."""
    if trainer.state.fn != TrainerFn.FITTING:
        return ""
    at_epoch_end = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
    number, unit = (_epochs(trainer), "epoch") if at_epoch_end else (trainer.global_step, "step")
    return f"after {counted(number, unit)}"


def _step(trainer: Trainer) -> int:
    """The step under which Lightning logs an evaluation's scalars."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped
