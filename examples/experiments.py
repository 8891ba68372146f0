"""Helpers that the runners of these examples share: a file with one row per run, runs that resume, and tables."""

from __future__ import annotations

import csv
import hashlib
import io
import logging
import math
import os
import shutil
import statistics
import time
import warnings
from argparse import RawDescriptionHelpFormatter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

import torch
from jsonargparse import DefaultHelpFormatter
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, ModelCheckpoint
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lightning_farms.common.atomic import complete_or_nothing

if TYPE_CHECKING:
    from matplotlib.figure import Figure

CHECKPOINT = "last.ckpt"
_LARGE = 1000  # a mean from here on comes from a training that went wrong, so its decimals mean nothing


class Run(Protocol):
    """One training or other run of a study."""

    @property
    def key(self) -> Mapping[str, str]:
        """Everything that tells this run from others, as text for the file of runs."""

    @property
    def label(self) -> str:
        """A short name to show."""

    @property
    def epochs(self) -> int:
        """Number of epochs of the run."""


def key_texts(values: Mapping[str, object]) -> dict[str, str]:
    """Format the values that tell a run from others as text for the file of runs."""
    return {name: f"{value:g}" if isinstance(value, float) else str(value) for name, value in values.items()}


RunT = TypeVar("RunT", bound=Run)
OnEpoch = Callable[[int], None]


class Curve(NamedTuple):
    """The measurements of a run.

    Attributes:
        values: the monitored metric at every epoch with an evaluation.
        seconds: duration of the training, over all parts of an interrupted one.
        test: the test's metrics, if one was asked for.
    """

    values: tuple[float, ...]
    seconds: float
    test: Mapping[str, float] = {}


class OutOfTimeError(Exception):
    """The time of this call is over; the next call continues its work."""


class Clock:
    """Tells when to stop, so that several calls of limited duration can do a long piece of work together.

    Args:
        minutes: time from now; None for no end.
    """

    def __init__(self, minutes: float | None = None) -> None:
        self._end = math.inf if minutes is None else time.monotonic() + 60 * minutes

    def over(self) -> bool:
        """Whether the time is over."""
        return time.monotonic() >= self._end

    def check(self) -> None:
        """Stop here if the time is over.

        Raises:
            OutOfTimeError: the time is over.
        """
        if self.over():
            raise OutOfTimeError


class RunTable:
    """The file of runs, written through to the disk: a row for each run that ended; a run's last row counts.

    Args:
        path: the file, created with the first row.
        key: names of the columns that tell runs apart.
        results: names of the columns of results.

    Raises:
        ValueError: the file exists and has other columns.
    """

    def __init__(self, path: Path, key: Sequence[str], results: Sequence[str]) -> None:
        self.path = path
        self.columns = (*key, "status", *results, "error")
        if path.exists() and (header := path.read_text(encoding="utf-8").partition("\n")[0]) != ",".join(self.columns):
            raise ValueError(f"Expected {path} to have the columns {', '.join(self.columns)}, but it has {header!r}.")

    def rows(self) -> list[dict[str, str]]:
        """Return all complete rows; one that a killed process left unfinished is skipped."""
        if not self.path.exists():
            return []
        text = self.path.read_text(encoding="utf-8")
        return [row for row in csv.DictReader(io.StringIO(text)) if None not in row and None not in row.values()]

    def finished(self, run: Run) -> dict[str, str] | None:
        """Return the row of a run, or None if it has not finished."""
        same = [row for row in self.rows() if all(row.get(name) == value for name, value in run.key.items())]
        return same[-1] if same and same[-1]["status"] == "finished" else None

    def append(self, run: Run, result: Mapping[str, float | str] | None, error: str = "") -> None:
        """Add the row of a run that ended, without a result if it failed, and the header if the file is new."""
        figures = {name: v if isinstance(v, str) else f"{v:.6g}" for name, v in (result or {}).items()}
        row = {**run.key, "status": "failed" if result is None else "finished", **figures, "error": error}
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with _alone_in(self.path.parent):
            earlier = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
            text = io.StringIO()
            writer = csv.DictWriter(text, self.columns, restval="", lineterminator="\n")
            if not earlier:
                writer.writeheader()
            elif not earlier.endswith("\n"):
                text.write("\n")
            writer.writerow(row)
            write_text(self.path, earlier + text.getvalue())


@contextmanager
def _alone_in(folder: Path) -> Iterator[None]:
    """Make other processes that add a row in the same folder wait, if the system supports it."""
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # raised by file systems without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def write_text(path: Path, text: str) -> None:
    """Write a file completely or not at all; an error leaves an earlier one unchanged."""
    with complete_or_nothing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def save_figure(figure: Figure, path: Path, dpi: float | None = None) -> None:
    """Write a picture completely or not at all."""
    with complete_or_nothing(path) as draft:
        figure.savefig(draft, format=path.suffix[1:], dpi=dpi or figure.dpi)


class Record(Callback):
    """Records a metric at every evaluation and the time so far, also in checkpoints, so that a resumed run has them."""

    def __init__(self, monitor: str, on_epoch: OnEpoch) -> None:
        self.values: list[float] = []
        self.seconds = 0.0
        self._monitor, self._on_epoch, self._since = monitor, on_epoch, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the clock."""
        self._since = time.perf_counter()
        self._on_epoch(trainer.current_epoch)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Record the epoch's value if there was a validation."""
        every = trainer.check_val_every_n_epoch or 1
        if (trainer.current_epoch + 1) % every == 0:
            self.values.append(float(trainer.callback_metrics[self._monitor]))
        now = time.perf_counter()
        self.seconds, self._since = self.seconds + now - self._since, now
        self._on_epoch(trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """Return the values and the time."""
        return {"values": list(self.values), "seconds": self.seconds}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue from saved values and time."""
        self.values, self.seconds = list(state_dict["values"]), state_dict["seconds"]


class Pause(Checkpoint):
    """Writes a checkpoint and stops the training when the time is over, within an epoch or after it.

    It does not stop between an epoch's last step and its end, since resuming would leave out the work of the end.
    """

    def __init__(self, clock: Clock, path: Path) -> None:
        self._clock, self._path = clock, path

    def on_train_batch_end(self, trainer: Trainer, *_: object) -> None:
        """Stop within an epoch."""
        if not trainer.is_last_batch:
            self._stop_if_over(trainer)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stop after an epoch, unless it is the last one."""
        if trainer.current_epoch + 1 != trainer.max_epochs:
            self._stop_if_over(trainer)

    def _stop_if_over(self, trainer: Trainer) -> None:
        if self._clock.over():
            new = self._path.with_suffix(".new")
            trainer.save_checkpoint(new)
            new.replace(self._path)
            raise OutOfTimeError


def fit(
    module: LightningModule,
    data: LightningDataModule,
    folder: Path,
    *,
    monitor: str,
    on_epoch: OnEpoch,
    epochs: int,
    evaluate_every: int = 1,
    callbacks: Sequence[Callback] = (),
    clock: Clock | None = None,
    test: bool = False,
    **trainer_options: Any,  # noqa: ANN401 (the Trainer's)
) -> Curve:
    """Train, continuing from the checkpoint of an interrupted run if there is one; it is removed at the end.

    Args:
        module: the module to train.
        data: the data to train on.
        folder: folder for the run's checkpoint.
        monitor: the logged metric to record.
        on_epoch: called with the number of epochs done.
        epochs: number of epochs.
        evaluate_every: epochs from one validation to the next.
        callbacks: callbacks of the run.
        clock: tells when to stop and leave the rest to the next call.
        test: whether to test the trained network.
        trainer_options: other arguments of the Trainer.

    Returns:
        The measurements.

    Raises:
        OutOfTimeError: the time is over; the checkpoint stays, and the same call continues from it, bit for bit.
        RuntimeError: the training ended early.
    """
    record = Record(monitor, on_epoch)
    saver = ModelCheckpoint(
        folder,
        filename=Path(CHECKPOINT).stem,
        enable_version_counter=False,
        save_on_train_epoch_end=True,
        every_n_epochs=evaluate_every,
    )
    trainer = Trainer(
        accelerator="auto",
        devices=1,
        max_epochs=epochs,
        check_val_every_n_epoch=evaluate_every,
        logger=False,
        callbacks=[record, *callbacks, saver, Pause(clock or Clock(), folder / CHECKPOINT)],
        num_sanity_val_steps=0,
        enable_progress_bar=False,
        enable_model_summary=False,
        **trainer_options,
    )
    trainer.fit(module, datamodule=data, ckpt_path=_whole(folder / CHECKPOINT))
    if trainer.current_epoch != epochs:
        raise RuntimeError(f"the training ended after {trainer.current_epoch} of {epochs} epochs")
    metrics = trainer.test(module, datamodule=data, verbose=False)[0] if test else {}
    shutil.rmtree(folder, ignore_errors=True)
    return Curve(tuple(record.values), record.seconds, metrics)


def _whole(path: Path) -> Path | None:
    """Return the file, unless it is missing or was cut short when its run was killed."""
    try:
        torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # reading a damaged file can fail in any way
        return None
    return path


def run_all(
    runs: Sequence[RunT],
    table: RunTable,
    train: Callable[[RunT, Path, OnEpoch], Mapping[str, Any]],
    summary: Callable[[Mapping[str, Any]], str],
    clock: Clock | None = None,
) -> int:
    """Do all runs that have not finished yet; a failed run is recorded, and the others continue.

    Args:
        runs: the runs to do.
        table: the file for their results.
        train: does a run, in a folder of its own, and returns its results by column.
        summary: describes a result in a few words.
        clock: tells when to begin no further run; the current one stops only if `train` checks for it.

    Returns:
        The number of runs that failed.

    Raises:
        OutOfTimeError: the time is over before all runs are done.
    """
    failed, clock = 0, clock or Clock()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    checkpoints = table.path.parent / "checkpoints"
    with Progress(*columns) as progress:
        total = progress.add_task("runs", total=len(runs))
        for run in runs:
            if table.finished(run) is None:
                clock.check()
                folder = checkpoints / hashlib.sha256(repr(sorted(run.key.items())).encode()).hexdigest()[:16]
                failed += not _attempt(run, table, lambda run, on_epoch, folder=folder: train(run, folder, on_epoch),
                                       summary, progress)  # fmt: skip
            progress.advance(total)
    with suppress(OSError):  # the folder is missing or not empty
        checkpoints.rmdir()
    return failed


def _attempt(
    run: RunT,
    table: RunTable,
    train: Callable[[RunT, OnEpoch], Mapping[str, Any]],
    summary: Callable[[Mapping[str, Any]], str],
    progress: Progress,
) -> bool:
    """Do a run, record its outcome, and return whether it finished."""
    epochs = progress.add_task(run.label, total=run.epochs)
    try:
        result = train(run, lambda done: progress.update(epochs, completed=done))
    except OutOfTimeError:
        raise
    except Exception as error:  # the other runs continue, whatever it is
        table.append(run, None, " ".join(f"{type(error).__name__}: {error}".split()))
        progress.print(f"{run.label}: failed: {error}", markup=False)
        return False
    finally:
        progress.remove_task(epochs)
    table.append(run, result)
    progress.print(f"{run.label}: {summary(result)}", soft_wrap=True)
    return True


def spread(values: Sequence[float], wanted: int, digits: int) -> str:
    """Format mean ± standard deviation, with the number of values if it is not the wanted one."""
    if not values:
        return "-"
    deviation = f" ± {_number(statistics.stdev(values), digits)}" if len(values) > 1 else ""
    count = "" if len(values) == wanted else f" ({len(values)})"
    return f"{_number(statistics.mean(values), digits)}{deviation}{count}"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if abs(value) < _LARGE else f"{value:.2g}"


def markdown(header: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    """Format a table in Markdown."""
    rule = "|" + "---|" * len(header)
    return "\n".join([_line(header), rule, *map(_line, lines)]) + "\n"


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


class Help(RawDescriptionHelpFormatter, DefaultHelpFormatter):
    """Help formatter that keeps the lines of the description."""


def quiet() -> None:
    """Silence Lightning's messages about every single run."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message="The '.*_dataloader' does not have many workers")
    warnings.filterwarnings("ignore", message=".* has no logger to write to")
    warnings.filterwarnings("ignore", message="Checkpoint directory .* exists and is not empty")
    warnings.filterwarnings("ignore", message=r"`isinstance\(treespec, LeafSpec\)` is deprecated")
