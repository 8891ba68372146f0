"""One analysis for all callbacks of a Trainer that ask for the same: made, logged, drawn and printed once."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console

from lightning_farms.analysis.history import LayerHistory
from lightning_farms.analysis.layer_spectrum import LayerSpectrum
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.callbacks._spectral.in_trainer import (
    BackgroundAnalysis,
    analyze_in_background,
    analyze_in_trainer,
    attempt,
    spectra_in_trainer,
)
from lightning_farms.callbacks._spectral.options import AnalysisOptions
from lightning_farms.callbacks._spectral.schedule import Moment
from lightning_farms.callbacks._spectral.summary import summary_table
from lightning_farms.loggers.pictures import Picture, analysis_pictures, hand_out, run_figures, spread_over_depth
from lightning_farms.loggers.run_description import Logged, describe
from lightning_farms.loggers.scalars import log_scalars
from lightning_farms.loggers.sinks import sinks


class Subscriber(Protocol):
    """What a shared analysis asks of a callback that shares it."""

    workspace: int
    overlap: bool
    figures_every_n_epochs: int
    esd_layers: int
    summary: bool
    every_n_steps: int | None
    report: SpectralReport | None
    history: LayerHistory

    def analysed_at(self) -> Moment | None:
        """When its report is from."""

    def adjusted_values(self) -> dict[str, dict[str, float]]:
        """{first part of the log keys: {layer: value}} of what it adjusts."""

    def factors(self) -> dict[str, dict[str, float]]:
        """{title: {weight: multiplier}} for the closing table."""

    def remarks(self) -> list[str]:
        """Lines below the closing table."""


class _UnderWay(NamedTuple):
    """An analysis in a thread: of the weights at which moment, and how long it took to start it."""

    moment: Moment
    analysis: BackgroundAnalysis
    seconds: float


class SharedAnalysis:
    """The analyses of one fit that answer one question, and all that is written about them.

    Subscribers differ in when they want an analysis, and in what they do with it. Where their other options differ, the
    least workspace, the most frequent figures and the most spectra hold.
    """

    def __init__(self, options: AnalysisOptions, label: str) -> None:
        self.options = options
        self.label = label  # first part of the log keys
        self.subscribers: list[Subscriber] = []
        self.history = LayerHistory()  # alphas of all analyses, whoever wanted them
        self._report: SpectralReport | None = None  # of the last analysis that did not fail
        self._reported: Moment | None = None
        self._outcome: SpectralReport | str = ""  # of the last analysis
        self._moment: Moment | None = None
        self._under_way: _UnderWay | None = None
        self._analysis_seconds: float | None = None  # of an analysis that is not logged yet
        self._epoch_start: float | None = None
        self._spent = 0.0  # seconds in this epoch
        self._figures_at: Moment | None = None
        self._esd_names: list[str] = []
        self._warned_of: set[str] = set()
        self._closed = False

    def subscribe(self, subscriber: Subscriber) -> None:
        """Take a callback in, with what it remembers of earlier fits."""
        self.subscribers.append(subscriber)
        self.history = LayerHistory.merged([self.history, subscriber.history], "alpha")
        at = subscriber.analysed_at()
        if subscriber.report is not None and at is not None and (self._reported is None or at > self._reported):
            self._report, self._reported = subscriber.report, at

    # ---- options -----------------------------------------------------------------------------------------------------

    @property
    def _workspace(self) -> int:
        return min(subscriber.workspace for subscriber in self.subscribers)

    @property
    def _figures_every_n_epochs(self) -> int:
        """0: at the end only."""
        return min((s.figures_every_n_epochs for s in self.subscribers if s.figures_every_n_epochs), default=0)

    # ---- analysing ---------------------------------------------------------------------------------------------------

    def take(self, trainer: Trainer, pl_module: LightningModule, now: Moment) -> SpectralReport | None:
        """The report of this moment, made unless it has been, None where that failed; a collective."""
        if self._moment != now:
            self._analyse(trainer, pl_module, now)
        return None if isinstance(self._outcome, str) else self._outcome

    def overlap(self, pl_module: LightningModule, now: Moment) -> None:
        """Start the analysis of this moment's weights in a thread, if a subscriber wants that; :meth:`take` waits.

        Where the weights cannot be copied nothing is started, and :meth:`take` says what is wrong.
        """
        wanted = any(subscriber.overlap for subscriber in self.subscribers)
        if not wanted or (self._under_way is not None and self._under_way.moment == now):
            return
        self.drop()
        started = time.perf_counter()
        analysis = analyze_in_background(self.options, pl_module, self._workspace)
        if analysis is not None:
            self._under_way = _UnderWay(now, analysis, time.perf_counter() - started)

    def drop(self) -> None:
        """Leave no thread behind."""
        if self._under_way is not None:
            self._under_way.analysis.close()
            self._under_way = None

    def _analyse(self, trainer: Trainer, pl_module: LightningModule, now: Moment) -> None:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # so that the time is the analysis's own
        started = time.perf_counter()
        if self._under_way is not None and self._under_way.moment == now:
            outcome = attempt(self._under_way.analysis.report)
            started -= self._under_way.seconds
            self._under_way = None
        else:
            outcome = analyze_in_trainer(self.options, trainer, pl_module, self._workspace)
        self._moment, self._outcome = now, outcome
        if self._usable(outcome) is not None:
            assert isinstance(outcome, SpectralReport)
            self._report, self._reported = outcome, now
            self.history.append(now.epochs, {"alpha": outcome.alphas}, step=now.step)
            self._analysis_seconds = time.perf_counter() - started
            self._spent += self._analysis_seconds

    def _usable(self, outcome: SpectralReport | str) -> SpectralReport | None:
        if not isinstance(outcome, str):
            return outcome
        self._warn_once("analysis", f"The spectral analysis failed and was skipped; training goes on. {outcome}")
        return None

    # ---- logging -----------------------------------------------------------------------------------------------------

    def alpha_moments(self) -> dict[str, float]:
        """Mean and spread of the last analysis, where they are finite, under their log keys."""
        if self._report is None:
            return {}
        moments = {"alpha_mean": self._report.mean_alpha, "alpha_std": self._report.std_alpha}
        return {f"{self.label}/{name}": value for name, value in moments.items() if math.isfinite(value)}

    def write(
        self, trainer: Trainer, pl_module: LightningModule, last: Subscriber, *, epoch_end: bool = False
    ) -> dict[str, float]:
        """Log and draw the analysis that its subscribers have acted on, once the last of them has.

        At the end of an epoch what they adjust is logged in any case. A collective.

        Returns:
            The times, under their log keys, for other callbacks to monitor; nothing where there is nothing to write.
        """
        if last is not self.subscribers[-1] or not (epoch_end or self._analysis_seconds is not None):
            return {}
        times, scalars = {}, {}
        if self._analysis_seconds is not None:
            started = time.perf_counter()
            self._draw(trainer, pl_module)
            logging_seconds = time.perf_counter() - started
            self._spent += logging_seconds
            times["analysis_seconds"], times["logging_seconds"] = self._analysis_seconds, logging_seconds
            scalars = self._by_layer() | self.alpha_moments()
            self._analysis_seconds = None
        if epoch_end and self._epoch_start is not None:
            times["epoch_share"] = self._spent / (time.perf_counter() - self._epoch_start)
        keyed = {f"{self.label}/time/{name}": value for name, value in times.items()}
        started = time.perf_counter()
        # Straight to the loggers, in one call: the module's own log takes half a millisecond a key.
        log_scalars(trainer, scalars | keyed | self._adjusted_values(), logged_step(trainer))
        self._spent += time.perf_counter() - started
        return keyed

    def start_epoch(self) -> None:
        """Start the epoch's clock."""
        self._epoch_start, self._spent = time.perf_counter(), 0.0

    def _by_layer(self) -> dict[str, float]:
        columns = self.options.columns()
        return {f"{self.label}/{name}/{row.name}": getattr(row, name) for name in columns for row in self._report or ()}

    def _adjusted_values(self) -> dict[str, float]:
        prefixes: dict[str, Mapping[str, float]] = {}
        for subscriber in self.subscribers:
            prefixes.update(subscriber.adjusted_values())
        return {f"{prefix}/{layer}": value for prefix, of in prefixes.items() for layer, value in of.items()}

    def logged(self) -> Logged:
        """Who logs under the label, and what by the layer."""
        columns = [f"{self.label}/{quantity}" for quantity in self.options.columns()]
        adjusted = sorted({prefix for subscriber in self.subscribers for prefix in subscriber.adjusted_values()})
        return Logged(self.subscribers, columns + adjusted)  # type: ignore[arg-type]

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The small pictures of an analysis, and the labelled figures if they are due."""
        assert self._report is not None
        assert self._reported is not None
        now = [h for h in self._histories() if h.ends_at(self._reported.epochs, self._reported.step)]
        self._hand_out(trainer, analysis_pictures(self.label, self._report, now))
        drawn = self._figures_at.epochs if self._figures_at else 0
        often = self._figures_every_n_epochs
        if often and self._reported.epochs // often > drawn // often:
            self.draw_figures(trainer, pl_module)

    def draw_figures(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The labelled figures of the run, unless they show the last analysis already; a collective."""
        if self._report is None or self._figures_at == self._reported:
            return
        self._figures_at = self._reported
        if not trainer.strategy.broadcast(bool(sinks(trainer))):
            return  # on all ranks, or on none: other ranks than zero may have no loggers, and are needed
        number = max(subscriber.esd_layers for subscriber in self.subscribers)
        self._esd_names = self._esd_names or spread_over_depth(self._report, number)
        spectra = self._spectra(trainer, pl_module) if self._esd_names else []
        self._hand_out(trainer, run_figures(self.label, self._report, self._histories(), spectra))

    def _histories(self) -> list[LayerHistory]:
        """What is drawn over time: alpha of all analyses, and what each subscriber adjusted at its own."""
        return [self.history, *(subscriber.history.without("alpha") for subscriber in self.subscribers)]

    def _spectra(self, trainer: Trainer, pl_module: LightningModule) -> list[LayerSpectrum]:
        """Rows of the layers that are drawn, with their eigenvalues on rank zero."""
        outcome = spectra_in_trainer(self.options, trainer, pl_module, self._workspace, self._esd_names)
        return [row for row in self._usable(outcome) or () if row.name in self._esd_names]

    def _hand_out(self, trainer: Trainer, pictures: Sequence[Picture]) -> None:
        self._warn_of(hand_out(pictures, sinks(trainer), logged_step(trainer)))

    # ---- the end -----------------------------------------------------------------------------------------------------

    def close(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the closing table, if a subscriber wants it, once; leave no thread behind."""
        self.drop()
        wanted = trainer.is_global_zero and any(subscriber.summary for subscriber in self.subscribers)
        if self._closed or not wanted or self._report is None or self._reported is None:
            return
        self._closed = True
        bar = trainer.progress_bar_callback
        if bar is not None:  # the live display of one that comes later would go over the table
            bar.teardown(trainer, pl_module, "fit")
        by_step = any(subscriber.every_n_steps is not None for subscriber in self.subscribers)
        number, unit = (self._reported.step, "step") if by_step else (self._reported.epochs, "epoch")
        factors = {title: of for subscriber in self.subscribers for title, of in subscriber.factors().items()}
        remarks = [line for subscriber in self.subscribers for line in subscriber.remarks()]
        after = f"{number} {unit}{'' if number == 1 else 's'}"
        Console().print(summary_table(self._report, self.history, factors, remarks, after=after))

    # ---- warnings ----------------------------------------------------------------------------------------------------

    def _warn_of(self, errors: Sequence[Exception]) -> None:
        for error in errors[:1]:
            what = f"{type(error).__name__}: {error}"
            self._warn_once("pictures", f"Pictures of the analysis could not be written; training goes on. {what}")

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned_of:
            self._warned_of.add(what)
            rank_zero_warn(message)


# ---- all of a Trainer ------------------------------------------------------------------------------------------------

_OF_TRAINER: WeakKeyDictionary[Trainer, list[SharedAnalysis]] = WeakKeyDictionary()


def forget_analyses(trainer: Trainer) -> None:
    """Leave those of an earlier fit; for setup, which every callback passes before the first subscribes."""
    _OF_TRAINER.pop(trainer, None)


def shared_analysis(trainer: Trainer, options: AnalysisOptions, subscriber: Subscriber) -> SharedAnalysis:
    """The Trainer's analysis of these options in this fit, to which the callback is subscribed now."""
    analyses = _OF_TRAINER.setdefault(trainer, [])
    shared = next((analysis for analysis in analyses if analysis.options == options), None)
    if shared is None:
        label = options.analysis.label
        number = 1 + sum(other.options.analysis.label == label for other in analyses)
        shared = SharedAnalysis(options, label if number == 1 else f"{label}-{number}")
        analyses.append(shared)
    shared.subscribe(subscriber)
    return shared


def describe_run(trainer: Trainer, first: Subscriber) -> None:
    """Write options and the arrangement of charts, once for all analyses: a second layout would replace the first."""
    analyses = _OF_TRAINER[trainer]
    if first is analyses[0].subscribers[0]:
        logged = {analysis.label: analysis.logged() for analysis in analyses}
        analyses[0]._warn_of(describe(sinks(trainer), logged, logged_step(trainer)))


def logged_step(trainer: Trainer) -> int:
    """The step under which Lightning logs an epoch's scalars, so that all charts share one axis."""
    return max(0, trainer.fit_loop.epoch_loop._batches_that_stepped - 1)
