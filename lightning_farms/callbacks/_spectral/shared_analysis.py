"""Analysis shared by all callbacks of a Trainer that ask for the same one; it is made, logged and drawn only once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple, Protocol
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn, TrainerStatus
from rich.table import Table

from lightning_farms.analysis.history import LayerHistory
from lightning_farms.analysis.known_layers import KnownLayers
from lightning_farms.analysis.layer_spectrum import LayerSpectrum
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.balancing.warnings import warnings_of_weights
from lightning_farms.callbacks._guard import warn
from lightning_farms.callbacks._spectral.in_trainer import (
    BackgroundAnalysis,
    analyze_in_background,
    analyze_in_trainer,
    attempt,
    spectra_in_trainer,
)
from lightning_farms.callbacks._spectral.options import AnalysisOptions
from lightning_farms.callbacks._spectral.printing import output_errors, print_table
from lightning_farms.callbacks._spectral.schedule import Moment
from lightning_farms.callbacks._spectral.summary import summary_table
from lightning_farms.common.faults import Faults
from lightning_farms.common.quantities import counted
from lightning_farms.common.warning import WarnOnce
from lightning_farms.functional.eigensolvers import Where
from lightning_farms.loggers.pictures import Picture, analysis_pictures, hand_out, run_figures, spread_over_depth
from lightning_farms.loggers.run_description import Logged, describe
from lightning_farms.loggers.scalars import log_scalars
from lightning_farms.loggers.sinks import sinks

_FAILED = "The spectral analysis failed and was skipped; training goes on"
_UNLOGGED = "scalars of the analysis could not be logged; training goes on"
_UNDRAWN = "pictures of the analysis could not be written; training goes on"
_UNDESCRIBED = "the options could not be written to a logger; training goes on"


class Subscriber(Protocol):
    """Interface of a callback to the analysis that it shares."""

    workspace: int
    where: Where
    overlap: bool
    figures_every_n_epochs: int
    esd_layers: int
    summary: bool
    every_n_steps: int | None

    @property
    def report(self) -> SpectralReport | None:
        """The callback's last report."""

    @property
    def history(self) -> LayerHistory:
        """Alphas that it has seen, and the values that it adjusted."""

    def is_due(self, now: Moment) -> bool:
        """Whether it wants an analysis of this moment, and has had none."""

    def analysed_at(self) -> Moment | None:
        """The moment of its last analysis."""

    def adjusted_values(self) -> dict[str, dict[str, float]]:
        """{first part of the log keys: {layer: adjusted value}}."""

    def factors(self) -> dict[str, dict[str, float]]:
        """{title: {weight: multiplier}} for the closing table."""

    def balanced_layers(self) -> Collection[str]:
        """Weights of the report whose layers it balances; empty if it balances none."""

    def scalars(self) -> dict[str, float]:
        """{last part of the log key: value} for scalars that are not per layer; all keys are there from the start."""

    def remarks(self) -> list[str]:
        """Lines below the closing table."""


class _UnderWay(NamedTuple):
    """An analysis in a thread: the moment of its weights, the analysis, and the seconds it took to start it."""

    moment: Moment
    analysis: BackgroundAnalysis
    seconds: float


class SharedAnalysis:
    """All analyses of one fit with the same options, and everything that is written about them.

    Subscribers differ in when they want an analysis, and in what they do with it. If their other options differ, the
    smallest workspace, the most frequent figures and the largest number of spectra apply.
    """

    def __init__(self, options: AnalysisOptions, label: str) -> None:
        self.options = options
        self.label = label  # first part of the log keys
        self.subscribers: list[Subscriber] = []
        self.history = LayerHistory()  # alphas of all analyses, whichever subscriber wanted them
        self._known = KnownLayers()
        self._report: SpectralReport | None = None  # report of the last analysis that did not fail
        self._reported: Moment | None = None
        self._outcome: SpectralReport | None = None  # report of the last analysis; None if it failed
        self._moment: Moment | None = None
        self._under_way: _UnderWay | None = None
        self._analysis_seconds: float | None = None  # time of an analysis that is not logged yet
        self._epoch_start: float | None = None
        self._spent = 0.0  # seconds spent in this epoch
        self._figures_at: Moment | None = None
        self._esd_names: list[str] = []
        self._faults = Faults(f"analysis {label!r}", warn)
        self._warn_once = WarnOnce(warn)
        self._written: tuple[int, dict[str, float]] = 0, {}  # the last step with scalars, and these
        self._closed = False

    def subscribe(self, subscriber: Subscriber) -> None:
        """Add a callback, with what it remembers of earlier fits."""
        if subscriber in self.subscribers:
            return
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
    def _where(self) -> Where:
        """The choice of the first subscriber that does not leave it at "auto"."""
        return next((s.where for s in self.subscribers if s.where != "auto"), "auto")

    @property
    def _figures_every_n_epochs(self) -> int:
        """The smallest interval that a subscriber has; 0: at the end only."""
        return min((s.figures_every_n_epochs for s in self.subscribers if s.figures_every_n_epochs), default=0)

    # ---- analysing ---------------------------------------------------------------------------------------------------

    def take(self, trainer: Trainer, pl_module: LightningModule, now: Moment) -> SpectralReport | None:
        """Return the report of this moment, analysing if that has not been done; None if it failed; a collective."""
        if self._moment != now:
            self._moment, self._outcome = now, None
            with self._faults.contained(_FAILED):
                self._outcome = self._usable(self._analyse(trainer, pl_module, now))
            if self._outcome is not None:  # a fault on one rank must not take the report from it, as others would wait
                with self._faults.contained("whether weights are finite is not known"):
                    for kind, message in warnings_of_weights(self._outcome).items():
                        self._warn_once(kind, message)
        return self._outcome

    def overlap(self, pl_module: LightningModule, now: Moment) -> None:
        """Start the analysis of this moment's weights in a thread, if a subscriber wants that; :meth:`take` waits.

        If the weights cannot be copied, nothing is started, and :meth:`take` reports the error.
        """
        wanted = any(subscriber.overlap for subscriber in self.subscribers)
        if not wanted or self._moment == now or (self._under_way is not None and self._under_way.moment == now):
            return
        self.drop()
        started = time.perf_counter()
        analysis = analyze_in_background(self.options, pl_module, self._workspace, self._where, self._known)
        if analysis is not None:
            self._under_way = _UnderWay(now, analysis, time.perf_counter() - started)

    def drop(self) -> None:
        """Leave no thread behind."""
        if self._under_way is not None:
            self._under_way.analysis.close()
            self._under_way = None

    def _analyse(self, trainer: Trainer, pl_module: LightningModule, now: Moment) -> SpectralReport | str:
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # so that only the analysis is timed
        started = time.perf_counter()
        if self._under_way is not None and self._under_way.moment == now:
            outcome = attempt(self._under_way.analysis.report)
            started -= self._under_way.seconds
            self._under_way = None
        else:
            outcome = analyze_in_trainer(self.options, trainer, pl_module, self._workspace, self._where, self._known)
        if not isinstance(outcome, str):
            self._report, self._reported = outcome, now
            if not self.history.ends_at(*now):  # or else a callback remembers this analysis from before a resumption
                self.history.append(now.epochs, {"alpha": outcome.alphas}, step=now.step)
            self._analysis_seconds = time.perf_counter() - started
            self._spent += self._analysis_seconds
        return outcome

    def _usable(self, outcome: SpectralReport | str) -> SpectralReport | None:
        if not isinstance(outcome, str):
            return outcome
        self._warn_once("analysis", f"{_FAILED}. {outcome}")
        return None

    # ---- logging -----------------------------------------------------------------------------------------------------

    def alpha_moments(self) -> dict[str, float]:
        """Mean and standard deviation of the last alphas by their log keys, if they are finite."""
        if self._report is None:
            return {}
        moments = {"alpha_mean": self._report.mean_alpha, "alpha_std": self._report.std_alpha}
        return {f"{self.label}/{name}": value for name, value in moments.items() if math.isfinite(value)}

    def write(
        self, trainer: Trainer, pl_module: LightningModule, last: Subscriber, *, epoch_end: bool = False
    ) -> dict[str, float]:
        """Log and draw the analysis, once the last of its subscribers has acted on it; a collective.

        At the end of an epoch, the values that they adjust are logged in any case.

        Returns:
            The times by their log keys, for other callbacks to monitor; empty if there is nothing to write.
        """
        if last is not self.subscribers[-1] or not (epoch_end or self._analysis_seconds is not None):
            return {}
        if not epoch_end and self._moment and any(subscriber.is_due(self._moment) for subscriber in self.subscribers):
            return {}  # the others act on an epoch's last step at the epoch's end
        times: dict[str, float] = {}
        scalars: dict[str, float] = {}
        if self._analysis_seconds is not None:
            started = time.perf_counter()
            times["analysis_seconds"], self._analysis_seconds = self._analysis_seconds, None
            self._draw(trainer, pl_module)
            times["logging_seconds"] = time.perf_counter() - started
            self._spent += times["logging_seconds"]
            scalars = self._part(self._by_layer) | self._part(self.alpha_moments)
        if epoch_end and self._epoch_start is not None:
            times["epoch_share"] = self._spent / (time.perf_counter() - self._epoch_start)
        keyed = {f"{self.label}/time/{name}": value for name, value in times.items()}
        started = time.perf_counter()
        for subscriber in self.subscribers:
            scalars |= self._part(partial(self._values_of, subscriber))
        with self._faults.contained(_UNLOGGED):
            # directly to the loggers, in one call, as the module's own log takes half a millisecond per key
            self._faults.say(_UNLOGGED, *self._log(trainer, scalars | keyed, logged_step(trainer)))
        self._spent += time.perf_counter() - started
        return keyed

    def _log(self, trainer: Trainer, scalars: dict[str, float], step: int) -> list[Exception]:
        """Give the loggers what they do not have: an analysis after an epoch's last step has written its values."""
        at, known = self._written
        known = known if at == step else {}
        self._written = step, known | scalars
        news = {key: value for key, value in scalars.items() if known.get(key) != value}
        return log_scalars(trainer, news, step)

    def start_epoch(self) -> None:
        """Start the epoch's clock."""
        self._epoch_start, self._spent = time.perf_counter(), 0.0

    def _by_layer(self) -> dict[str, float]:
        columns = self.options.columns()
        return {f"{self.label}/{name}/{row.name}": getattr(row, name) for name in columns for row in self._report or ()}

    def _values_of(self, subscriber: Subscriber) -> dict[str, float]:
        """The values that a subscriber adjusts, and its other scalars, by their log keys."""
        adjusted = subscriber.adjusted_values().items()
        by_layer = {f"{prefix}/{layer}": value for prefix, of in adjusted for layer, value in of.items()}
        return by_layer | {f"{self.label}/{name}": value for name, value in subscriber.scalars().items()}

    def _part(self, scalars: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Compute one part of the scalars; a fault in it does not keep the other parts from the loggers."""
        with self._faults.contained(_UNLOGGED):
            return scalars()
        return {}

    def logged(self) -> Logged:
        """The subscribers that log under the label, their quantities per layer, and their other scalars."""
        columns = [f"{self.label}/{quantity}" for quantity in self.options.columns()]
        adjusted = sorted({prefix for subscriber in self.subscribers for prefix in subscriber.adjusted_values()})
        others = sorted({name for subscriber in self.subscribers for name in subscriber.scalars()})
        return Logged(self.subscribers, columns + adjusted, others)  # type: ignore[arg-type]

    def describe(self, trainer: Trainer, analyses: Sequence[SharedAnalysis]) -> None:
        """Write the options and the arrangement of charts of all analyses."""
        with self._faults.contained(_UNDESCRIBED):
            logged = {analysis.label: analysis.logged() for analysis in analyses}
            self._faults.say(_UNDESCRIBED, *describe(sinks(trainer), logged, logged_step(trainer)))

    # ---- drawing -----------------------------------------------------------------------------------------------------

    def _draw(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the small pictures of an analysis, and the labelled figures if they are due."""
        assert self._report is not None
        assert self._reported is not None
        with self._faults.contained(_UNDRAWN):
            now = [h for h in self._histories() if h.ends_at(self._reported.epochs, self._reported.step)]
            self._hand_out(trainer, analysis_pictures(self.label, self._report, now))
        drawn = self._figures_at.epochs if self._figures_at else 0
        with self._faults.contained(_UNDRAWN):
            often = self._figures_every_n_epochs
            if often and self._reported.epochs // often > drawn // often:
                self.draw_figures(trainer, pl_module)

    def draw_figures(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the labelled figures of the run, unless they show the last analysis already; a collective."""
        if self._report is None or self._figures_at == self._reported:
            return
        self._figures_at = self._reported
        names = trainer.strategy.broadcast(self._names_to_draw(trainer))
        if names is None:
            return  # on all ranks or on none: ranks other than zero may have no loggers, but are needed
        spectra: list[LayerSpectrum] = []
        with self._faults.contained(_UNDRAWN):
            spectra = self._spectra(trainer, pl_module, names) if names else []
        with self._faults.contained(_UNDRAWN):
            self._hand_out(trainer, run_figures(self.label, self._report, self._histories(), spectra))

    def _names_to_draw(self, trainer: Trainer) -> list[str] | None:
        """Names of the layers whose spectra are drawn, always the same; None if no logger accepts pictures."""
        with self._faults.contained(_UNDRAWN):
            if not sinks(trainer):
                return None
            number = max(subscriber.esd_layers for subscriber in self.subscribers)
            assert self._report is not None
            self._esd_names = self._esd_names or spread_over_depth(self._report, number)
        return self._esd_names

    def _histories(self) -> list[LayerHistory]:
        """The histories to draw: alphas of all analyses, and the values that each subscriber adjusted."""
        return [self.history, *(subscriber.history.without("alpha") for subscriber in self.subscribers)]

    def _spectra(self, trainer: Trainer, pl_module: LightningModule, names: Sequence[str]) -> list[LayerSpectrum]:
        """Analyse the layers whose spectra are drawn, with their eigenvalues on rank zero."""
        outcome = spectra_in_trainer(self.options, trainer, pl_module, self._workspace, self._where, names)
        return [row for row in self._usable(outcome) or () if row.name in names]

    def _hand_out(self, trainer: Trainer, pictures: Sequence[Picture]) -> None:
        self._faults.say(_UNDRAWN, *hand_out(pictures, sinks(trainer), logged_step(trainer)))

    # ---- the end -----------------------------------------------------------------------------------------------------

    def close(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the closing table once, if a subscriber wants it; leave no thread behind."""
        self.drop()
        wanted = trainer.is_global_zero and any(subscriber.summary for subscriber in self.subscribers)
        if self._closed or not wanted or self._report is None or self._reported is None:
            return
        self._closed = True
        bar = trainer.progress_bar_callback
        if bar is not None:  # if it was closed later, its live display would overwrite the table
            with self._faults.contained("the progress bar could not be closed"), output_errors():
                bar.teardown(trainer, pl_module, "fit")
        with self._faults.contained("the closing table could not be printed"):
            print_table(self._closing_table(self._report, self._reported))

    def _closing_table(self, report: SpectralReport, at: Moment) -> Table:
        by_step = any(subscriber.every_n_steps is not None for subscriber in self.subscribers)
        number, unit = (at.step, "step") if by_step else (at.epochs, "epoch")
        factors: dict[str, Mapping[str, float]] = {}
        remarks: list[str] = []
        balanced: list[Collection[str]] = []
        for subscriber in self.subscribers:
            with self._faults.contained("the closing table is not complete"):
                factors |= subscriber.factors()
                balanced.append(subscriber.balanced_layers())
                remarks += subscriber.remarks()
        after = counted(number, unit)
        return summary_table(report, self.history, factors, remarks, balanced=balanced, after=after)


# ---- all of a Trainer ------------------------------------------------------------------------------------------------

_OF_TRAINER: WeakKeyDictionary[Trainer, list[SharedAnalysis]] = WeakKeyDictionary()


def forget_analyses(trainer: Trainer) -> None:
    """Forget the analyses of an earlier fit; called at setup, which all callbacks run before the first subscribes."""
    _OF_TRAINER.pop(trainer, None)


def shared_analysis(trainer: Trainer, options: AnalysisOptions, subscriber: Subscriber) -> SharedAnalysis:
    """Subscribe a callback to the Trainer's analysis with these options, and return that analysis."""
    analyses = _OF_TRAINER.setdefault(trainer, [])
    shared = next((analysis for analysis in analyses if analysis.options == options), None)
    if shared is None:
        label = options.analysis.label
        number = 1 + sum(other.options.analysis.label == label for other in analyses)
        shared = SharedAnalysis(options, label if number == 1 else f"{label}-{number}")
    shared.subscribe(subscriber)
    if shared not in analyses:
        analyses.append(shared)
    order = {id(callback): place for place, callback in enumerate(trainer.callbacks)}  # type: ignore[attr-defined]
    shared.subscribers.sort(key=lambda one: order.get(id(one), len(order)))  # one that failed to start joins late
    return shared


def runs_elsewhere(trainer: Trainer, subscriber: Subscriber) -> bool:
    """Whether the callback takes part in another Trainer's fit, which is still running."""
    return any(
        other is not trainer
        and (other.state.fn, other.state.status) == (TrainerFn.FITTING, TrainerStatus.RUNNING)
        and any(subscriber in analysis.subscribers for analysis in analyses)
        for other, analyses in list(_OF_TRAINER.items())
    )


def describe_run(trainer: Trainer, first: Subscriber) -> None:
    """Write the options and the arrangement of charts once for all analyses, as a second layout replaces the first."""
    analyses = _OF_TRAINER.get(trainer, [])
    if analyses and first is analyses[0].subscribers[0]:
        analyses[0].describe(trainer, analyses)


def logged_step(trainer: Trainer) -> int:
    """The step under which Lightning logs a batch's or an epoch's scalars; with it, all charts share one axis."""
    loop = trainer.fit_loop.epoch_loop
    batches: Any = loop.batch_progress.current  # whose declared type lacks `processed`
    return max(0, loop._batches_that_stepped - int(batches.processed == batches.completed))  # else not counted yet
