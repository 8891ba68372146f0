"""Analyse every weight matrix during training, and log what was found."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from rich.console import Console

from lightning_farms.analysis import (
    FARMS,
    WORKSPACE,
    Diagnostics,
    LayerSpectrum,
    Selection,
    SpectralMethod,
    SpectralReport,
    layer_weights,
)
from lightning_farms.analysis.history import LayerHistory
from lightning_farms.callbacks._spectral.measurement import Measurements
from lightning_farms.callbacks._spectral.question import Question
from lightning_farms.callbacks._spectral.schedule import Moment, Schedule
from lightning_farms.callbacks._spectral.strategies import check_strategy, whole_shapes
from lightning_farms.callbacks._spectral.summary import summary_table
from lightning_farms.loggers.pictures import analysis_pictures, hand_out, run_figures, spread_over_depth
from lightning_farms.loggers.run_description import Logged, describe
from lightning_farms.loggers.sinks import log_scalars, sinks

_STATE_VERSION = 2


class SpectralMonitor(Callback):
    """Measures the spectrum of every weight matrix before the first step and every n epochs or steps, and logs it.

    Nothing of the training is changed. Several callbacks of this package that ask for the same analysis, selection and
    diagnostics share one analysis; the first of them (those that adjust something before monitors) logs it. Under
    DDP, FSDP, FSDP2 and tensor parallelism (``ModelParallelStrategy``) the layers are shared out over the ranks, and
    all ranks receive the same report, equal bit for bit to that of one process. An analysis that fails is reported
    once and skipped; it never stops the training.

    Log keys (``farms`` stands for the analysis's label: ``farms`` or ``whole``, with ``-2``, ... for a second analysis
    of that label in one Trainer; scalars go to every logger, the rest to TensorBoard, and, as far as they have a place
    for it, to Weights & Biases, MLflow and any logger with a ``log_image`` of Lightning's form):

    ===================================  ==============================================================================
    ``farms/alpha/<layer>``              PL_Alpha_Hill of a layer
    ``farms/alpha_mean``, ``alpha_std``  mean and standard deviation over the analysed layers
    ``farms/relative_alpha/<layer>``     alpha by that of the shuffled weight, if ``diagnostics.twin``
    ``farms/mp_spikes/<layer>``          eigenvalues beyond the random bulk, if ``diagnostics.marchenko_pastur``
    ``farms/p_value/<layer>``            goodness of the power-law fit, if ``diagnostics.p_value``
    ``farms/time/analysis_seconds``      wall-clock time that the training waits for the analysis
    ``farms/time/logging_seconds``       wall-clock time of the pictures that follow it
    ``farms/time/epoch_share``           share of an epoch's time that analyses, pictures and logging took
    ``farms/alpha_histogram``            histogram of alpha over layers, each analysis
    ``farms/alpha_map``                  heat map, layers by epochs, each analysis (colours only)
    ``farms/alpha_map_labelled``         the same as a labelled figure, every ``figures_every_n_epochs`` and at the end
    ``farms/alpha_over_depth``           alpha of every layer, first and now, as often as the labelled figures
    ``farms/esd/<layer>``                ESD of a few layers with fitted tail and random bulk, as often as these figures
    ``farms/options``                    a text: arguments of the callbacks, and versions
    Custom Scalars of TensorBoard        one chart of all layers' alphas, one of all rates, mean and spread, time
    ===================================  ==============================================================================

    Args:
        analysis: how to analyse: ``FARMS(...)`` or ``WholeMatrix(...)``.
        every_n_epochs: analyse after every n-th epoch (and before the first step).
        every_n_steps: analyse after every n-th optimizer step instead (and before the first); the steps of all
            optimizers count.
        start_epoch: number of epochs before the first analysis, from which ``every_n_epochs`` is counted.
        selection: which weights to analyse.
        diagnostics: error bars, goodness of fit and random baselines.
        workspace: bytes for the analysis, at least 1.
        overlap: analyse a copy of the weights, as they are when the epoch's last validation starts, in a thread of its
            own while that validation runs; of effect in one process, and where validation follows the epoch's last
            step. Report and multipliers are the same. It saves time where the validation leaves a core idle.
        figures_every_n_epochs: write labelled figures at the first analysis after every n-th epoch, and at the end of
            training; 0: at the end only.
        esd_layers: number of layers, evenly spread over depth, whose ESD is drawn.
        summary: whether to print a table of all layers at the end of training.

    Attributes:
        report: the last :class:`~lightning_farms.analysis.SpectralReport`, None before the first analysis.
        history: alphas of all analyses, a :class:`~lightning_farms.analysis.history.LayerHistory`.

    Raises:
        TypeError: ``analysis``, ``selection`` or ``diagnostics`` is no such thing.
        ValueError: an interval or a number is out of range, or a pattern of ``selection`` fits no layer (when the fit
            starts).
        MisconfigurationException: the strategy is DeepSpeed's, or FSDP with ``use_orig_params=False`` (at setup).

    Example:
        >>> monitor = SpectralMonitor(FARMS(aspect_ratio=1.0), every_n_epochs=5)
    """

    def __init__(
        self,
        analysis: SpectralMethod = FARMS(),
        every_n_epochs: int = 1,
        *,
        every_n_steps: int | None = None,
        start_epoch: int = 0,
        selection: Selection = Selection(),
        diagnostics: Diagnostics = Diagnostics(),
        workspace: int = WORKSPACE,
        overlap: bool = False,
        figures_every_n_epochs: int = 10,
        esd_layers: int = 4,
        summary: bool = True,
    ) -> None:
        if not isinstance(analysis, SpectralMethod):
            raise TypeError(f"Expected argument `analysis` to be FARMS(...) or WholeMatrix(...), but got {analysis!r}.")
        for name, option, kind in (("selection", selection, Selection), ("diagnostics", diagnostics, Diagnostics)):
            if not isinstance(option, kind):
                raise TypeError(f"Expected argument `{name}` to be {kind.__name__}(...), but got {option!r}.")
        Schedule(every_n_epochs, every_n_steps, start_epoch)  # which checks them
        if workspace < 1:
            raise ValueError(f"Expected argument `workspace` to be at least 1, but got {workspace}.")
        for name, value in (("figures_every_n_epochs", figures_every_n_epochs), ("esd_layers", esd_layers)):
            if value < 0:
                raise ValueError(f"Expected argument `{name}` to be 0 or more, but got {value}.")
        self.analysis = analysis
        self.every_n_epochs = every_n_epochs
        self.every_n_steps = every_n_steps
        self.start_epoch = start_epoch
        self.selection = selection
        self.diagnostics = diagnostics
        self.workspace = workspace
        self.overlap = overlap
        self.figures_every_n_epochs = figures_every_n_epochs
        self.esd_layers = esd_layers
        self.summary = summary
        self._module: int | None = None  # the module of the last fit
        self._reset()

    def _reset(self) -> None:
        self.report: SpectralReport | None = None
        self.history = LayerHistory()
        self._analysed: Moment | None = None  # the last analysis
        self._measurements = Measurements()  # shared with callbacks of equal analysis
        self._figures_at: Moment | None = None
        self._esd_names: list[str] = []
        self._epoch_start: float | None = None
        self._spent = 0.0  # seconds in this epoch
        self._warned_of: set[str] = set()

    # ---- state -------------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Unique for the class and what it analyses; other options may change between a run and its resumption."""
        return self._generate_state_key(analysis=self.analysis, selection=self.selection, diagnostics=self.diagnostics)

    def state_dict(self) -> dict[str, Any]:
        """Moment of the last analysis and history, in plain types."""
        analysed = None if self._analysed is None else self._analysed._asdict()
        return {"version": _STATE_VERSION, "analysed": analysed, "history": self.history.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the values; they take effect when the fit starts."""
        version, analysed = state_dict.get("version"), state_dict.get("analysed")
        if version not in (1, _STATE_VERSION):
            raise ValueError(
                f"Expected a {type(self).__name__} state of version 1 or {_STATE_VERSION}, but the checkpoint has "
                f"{version!r}; remove the callback's state from it or use the version that wrote it."
            )
        if analysed is not None:
            analysed = Moment(analysed, 0) if version == 1 else Moment(**analysed)  # version 1 counted epochs only
        self._analysed = analysed
        self.history = LayerHistory.from_state_dict(state_dict["history"])

    # ---- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer whose weights this callback cannot see whole; forget an earlier run."""
        if stage != "fit":
            return
        check_strategy(trainer.strategy, type(self).__name__)
        if (trainer.global_step == 0 and trainer.current_epoch == 0) or self._module != id(pl_module):
            self._reset()
        self._module = id(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an earlier fit measured and drew; refuse a pattern that fits no layer."""
        self._measurements = Measurements()
        self._epoch_start, self._spent, self._figures_at = None, 0.0, None
        with whole_shapes(trainer):
            next(layer_weights(pl_module, self.selection, values=False), None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """First analysis, before the first step; on resumption only if the checkpoint's is behind."""
        if not trainer.loggers and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"{type(self).__name__} has no logger to write to: its report and history are still available. "
                "Give the Trainer a TensorBoardLogger to see histograms, heat maps and spectra."
            )
        if trainer.max_epochs is not None and -1 < trainer.max_epochs < self.start_epoch:
            rank_zero_warn(
                f"{type(self).__name__}: start_epoch={self.start_epoch} comes after the last epoch "
                f"(max_epochs={trainer.max_epochs}), so that nothing will be analysed."
            )
        self._describe(trainer)
        self._catch_up(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock, and make up for an analysis that a checkpoint in the epoch's last step skipped."""
        self._catch_up(trainer, pl_module)
        self._epoch_start, self._spent = time.perf_counter(), 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Analyse after every n-th step, where that is asked for."""
        if self.every_n_steps is None:
            return
        now = Moment.now(trainer)
        if self._schedule.is_due(now, self._analysed):
            scalars = self._update(trainer, pl_module, now)
            self._log(trainer, scalars)
            pl_module.log_dict(self._monitored(trainer, scalars), on_step=True, on_epoch=False, logger=False)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's analysis, if it is to overlap with a validation after the epoch's last step."""
        now = Moment.epoch_end(trainer)
        last_step_done = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        overlap = any(peer.overlap for peer in self._peers(trainer))
        wanted = overlap and trainer.world_size == 1 and self._schedule.is_due(now, self._analysed)
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if wanted and fitting and last_step_done and self._leader(trainer, now) is self:
            self._measurements.start(self._question, pl_module, now, self.workspace)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse and log; mean and spread go through the module, so that other callbacks can monitor them."""
        now = Moment.epoch_end(trainer)
        scalars = self._update(trainer, pl_module, now) if self._schedule.is_due(now, self._analysed) else {}
        scalars.update(self._share(trainer))
        self._log(trainer, scalars)
        pl_module.log_dict(self._monitored(trainer, scalars), logger=False, sync_dist=trainer.world_size > 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the labelled figures of the whole run."""
        if self.report is not None and self._analysed is not None and self._analysed != self._figures_at:
            self._write_figures(trainer, pl_module, draws=self._draws(trainer, self._analysed))

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no thread behind: Lightning calls no teardown after an exception or an interrupt."""
        self._measurements.drop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the closing table, of all callbacks of equal analysis."""
        self._measurements.drop()
        peers = self._peers(trainer) if stage == "fit" and trainer.is_global_zero else []
        wanted = self.report is not None and any(peer.summary for peer in peers)
        if wanted and self._analysed is not None and self._draws(trainer, self._analysed):
            self._print_summary(trainer, pl_module)

    # ---- for subclasses ----------------------------------------------------------------------------------------------

    def _before_analysis(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take notice of what has changed since the last one."""

    def _on_report(self, trainer: Trainer, report: SpectralReport) -> Mapping[str, Mapping[str, float]]:
        """Act on a new report; returns what the history keeps beside alpha, {quantity: {layer: value}}."""
        return {}

    def _values(self) -> dict[str, dict[str, float]]:
        """{first part of the log keys: {layer: value}} of what is adjusted, logged after every epoch and analysis."""
        return {}

    def _factors(self) -> dict[str, dict[str, float]]:
        """{title: {weight: multiplier}} for the closing table."""
        return {}

    _precedence = 1  # those that adjust something, 0, speak for the monitors of an equal analysis

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _catch_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse if that is due between two epochs: before the first, or after a resumption."""
        now = Moment.now(trainer)
        if self._schedule.is_due(now, self._analysed):
            scalars = self._update(trainer, pl_module, now)
            self._log(trainer, scalars)
            monitored = {
                key: torch.tensor(value, device="cpu") for key, value in self._monitored(trainer, scalars).items()
            }
            trainer.callback_metrics.update(monitored)

    def _update(self, trainer: Trainer, pl_module: LightningModule, now: Moment) -> dict[str, float]:
        """Analyse, unless a callback of equal analysis has done so, and write pictures; returns the scalars to log."""
        self._before_analysis(trainer, pl_module)
        leader = self._leader(trainer, now)
        _, outcome, seconds = leader._measurements.take(self._question, trainer, pl_module, now, leader.workspace)
        self._analysed = now
        report = self._report_or_warning(outcome)
        if report is None:
            return {}
        self.report = report
        quantities = self._on_report(trainer, report)
        self.history.append(now.epochs, {"alpha": report.alphas, **quantities}, step=now.step)
        started = time.perf_counter()
        self._write(trainer, pl_module, now)
        drawing_seconds = time.perf_counter() - started
        self._spent += drawing_seconds
        if leader is not self:
            return {}
        self._spent += seconds
        return self._scalars(trainer, report, seconds, drawing_seconds)

    def _log(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        """Straight to the loggers, in one call: the module's own log takes half a millisecond a key."""
        started = time.perf_counter()
        values = {f"{key}/{layer}": value for key, of in self._values().items() for layer, value in of.items()}
        log_scalars(trainer, {**scalars, **values}, _step(trainer))
        self._spent += time.perf_counter() - started

    def _spectra(self, trainer: Trainer, pl_module: LightningModule, names: list[str]) -> list[LayerSpectrum]:
        """Rows of the named layers, with their eigenvalues on rank zero."""
        outcome = self._question.ask_for_spectra(trainer, pl_module, self.workspace, names)
        return [row for row in self._report_or_warning(outcome) or () if row.name in names]

    def _report_or_warning(self, outcome: SpectralReport | str) -> SpectralReport | None:
        if not isinstance(outcome, str):
            return outcome
        self._warn_once("analysis", f"The spectral analysis failed and was skipped; training goes on. {outcome}")
        return None

    def _scalars(
        self, trainer: Trainer, report: SpectralReport, analysis_seconds: float, logging_seconds: float
    ) -> dict[str, float]:
        label = self._label(trainer)
        by_layer = {
            f"{label}/{quantity}/{row.name}": getattr(row, quantity)
            for quantity in self._question.columns()
            for row in report
        }
        return {
            **by_layer,
            f"{label}/alpha_mean": report.mean_alpha,
            f"{label}/alpha_std": report.std_alpha,
            f"{label}/time/analysis_seconds": analysis_seconds,
            f"{label}/time/logging_seconds": logging_seconds,
        }

    def _share(self, trainer: Trainer) -> dict[str, float]:
        """Share of the running epoch that all callbacks of equal analysis took, from the last of them."""
        peers = self._of_equal_analysis(trainer)
        if self._epoch_start is None or peers[-1] is not self:
            return {}
        spent = sum(peer._spent for peer in peers)
        return {f"{self._label(trainer)}/time/epoch_share": spent / (time.perf_counter() - self._epoch_start)}

    def _monitored(self, trainer: Trainer, scalars: Mapping[str, float]) -> dict[str, float]:
        """What other callbacks can monitor: mean and spread of alpha, and what the analysis costs."""
        label = self._label(trainer)
        names = ("alpha_mean", "alpha_std", "time/analysis_seconds", "time/logging_seconds", "time/epoch_share")
        found = {key: scalars.get(key, math.nan) for key in (f"{label}/{name}" for name in names)}
        return {key: value for key, value in found.items() if math.isfinite(value)}

    # ---- pictures ----------------------------------------------------------------------------------------------------

    def _write(self, trainer: Trainer, pl_module: LightningModule, now: Moment) -> None:
        draws = self._draws(trainer, now)
        report = self.report if self._leader(trainer, now) is self else None
        pictures = analysis_pictures(self._label(trainer), report, self._history_to_draw(draws))
        self._warn_of(hand_out(pictures, sinks(trainer), _step(trainer)))
        drawn = self._figures_at.epochs if self._figures_at else 0
        often = self.figures_every_n_epochs
        if often and now.epochs // often > drawn // often:
            self._write_figures(trainer, pl_module, draws)

    def _write_figures(self, trainer: Trainer, pl_module: LightningModule, draws: bool) -> None:
        assert self.report is not None
        self._figures_at = self._analysed
        if not trainer.strategy.broadcast(bool(sinks(trainer))):
            return  # on all ranks, or on none: other ranks than zero may have no loggers, and are needed
        chosen: list[LayerSpectrum] = []
        if draws:
            self._esd_names = self._esd_names or spread_over_depth(self.report, self.esd_layers)
            chosen = self._spectra(trainer, pl_module, self._esd_names) if self._esd_names else []
        report, history = self.report if draws else None, self._history_to_draw(draws)
        figures = run_figures(self._label(trainer), report, history, chosen)
        self._warn_of(hand_out(figures, sinks(trainer), _step(trainer)))

    def _history_to_draw(self, draws: bool) -> LayerHistory:
        """The history, of which alpha is drawn by one of the callbacks of equal analysis only."""
        return self.history if draws else self.history.without("alpha")

    def _describe(self, trainer: Trainer) -> None:
        """The first callback describes the run for all: a second layout of charts would replace the first."""
        everyone = monitors(trainer)
        if everyone[0] is not self:
            return
        logged: dict[str, Logged] = {}
        for monitor in everyone:
            label, peers = monitor._label(trainer), monitor._peers(trainer)
            columns = [f"{label}/{quantity}" for quantity in monitor._question.columns()]
            logged[label] = Logged(peers, columns + sorted({key for peer in peers for key in peer._values()}))
        self._warn_of(describe(sinks(trainer), logged, _step(trainer)))

    def _print_summary(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.report is not None
        assert self._analysed is not None
        bar = trainer.progress_bar_callback
        if bar is not None:  # the live display of one that comes later would go over the table
            bar.teardown(trainer, pl_module, "fit")
        by_step = self.every_n_steps is not None
        number, unit = (self._analysed.step, "step") if by_step else (self._analysed.epochs, "epoch")
        factors = {title: of for peer in self._peers(trainer) for title, of in peer._factors().items()}
        after = f"{number} {unit}{'' if number == 1 else 's'}"
        Console().print(summary_table(self.report, self.history, factors, after=after))

    # ---- warnings ----------------------------------------------------------------------------------------------------

    def _warn_of(self, errors: Sequence[Exception]) -> None:
        for error in errors[:1]:
            what = f"{type(error).__name__}: {error}"
            self._warn_once("pictures", f"Pictures of the analysis could not be written; training goes on. {what}")

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned_of:
            self._warned_of.add(what)
            rank_zero_warn(message)

    # ---- several callbacks in one Trainer ----------------------------------------------------------------------------

    @property
    def _question(self) -> Question:
        return Question(self.analysis, self.selection, self.diagnostics)

    @property
    def _schedule(self) -> Schedule:
        return Schedule(self.every_n_epochs, self.every_n_steps, self.start_epoch)

    def _peers(self, trainer: Trainer) -> list[SpectralMonitor]:
        """Callbacks that ask for the same, in the order in which they speak."""
        return sorted(self._of_equal_analysis(trainer), key=lambda callback: callback._precedence)

    def _of_equal_analysis(self, trainer: Trainer) -> list[SpectralMonitor]:
        """Callbacks that ask for the same, in the Trainer's order."""
        return [callback for callback in monitors(trainer) if callback._question == self._question]

    def _leader(self, trainer: Trainer, now: Moment) -> SpectralMonitor:
        """The one of equal analysis that analyses now and logs it: the first that has done so, or is due."""
        peers = self._peers(trainer)
        done = (c for c in peers if c._measurements.last is not None and c._measurements.last.moment == now)
        due = (c for c in peers if c._schedule.is_due(now, c._analysed))
        return next(done, None) or next(due, self)

    def _draws(self, trainer: Trainer, now: Moment) -> bool:
        """Whether alphas are drawn from this callback's history: the longest, the analysis of this moment included.

        Among equal ones it is the last's: that of a monitor, of several callbacks that take turns.
        """
        peers = [c for c in self._peers(trainer) if c.report is not None or c._schedule.is_due(now, c._analysed)]
        lengths = [len(c.history.epochs) + (c._analysed != now and c._schedule.is_due(now, c._analysed)) for c in peers]
        return bool(peers) and peers[len(peers) - 1 - lengths[::-1].index(max(lengths))] is self

    def _label(self, trainer: Trainer) -> str:
        """First part of the log keys: the analysis's label, numbered where two analyses share it."""
        same: list[Question] = []
        for callback in monitors(trainer):
            if callback.analysis.label == self.analysis.label and callback._question not in same:
                same.append(callback._question)
        number = same.index(self._question) + 1
        return self.analysis.label if number == 1 else f"{self.analysis.label}-{number}"


def monitors(trainer: Trainer) -> list[SpectralMonitor]:
    """The Trainer's callbacks that analyse, in its order."""
    return [callback for callback in trainer.callbacks if isinstance(callback, SpectralMonitor)]  # type: ignore[attr-defined]


def _step(trainer: Trainer) -> int:
    """The step under which Lightning logs an epoch's scalars, so that all charts share one axis."""
    return max(0, trainer.fit_loop.epoch_loop._batches_that_stepped - 1)
