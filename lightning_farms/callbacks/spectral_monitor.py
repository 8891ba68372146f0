"""A callback that analyses the spectrum of every weight matrix during training and logs the results."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.engine import WORKSPACE
from lightning_farms.analysis.history import LayerHistory
from lightning_farms.analysis.method import FARMS, SpectralMethod
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights.model import layer_weights
from lightning_farms.callbacks._guard import (
    USER_ERRORS,
    guarded,
    guarded_at_end,
    guarded_at_start,
    guarded_value,
    warn,
)
from lightning_farms.callbacks._handover import Handover, report_of, rows_of
from lightning_farms.callbacks._kept import KeptCallback
from lightning_farms.callbacks._spectral.options import AnalysisOptions
from lightning_farms.callbacks._spectral.schedule import Moment, Schedule
from lightning_farms.callbacks._spectral.shared_analysis import (
    SharedAnalysis,
    describe_run,
    forget_analyses,
    runs_elsewhere,
    shared_analysis,
)
from lightning_farms.callbacks._spectral.strategies import check_strategy, whole_shapes
from lightning_farms.common.faults import Faults
from lightning_farms.common.lightning_packages import misconfiguration
from lightning_farms.common.warning import WarnOnce
from lightning_farms.functional.eigensolvers import Where, check_where

_STATE_VERSION = 2


class SpectralMonitor(KeptCallback):
    """Measures the spectrum of every weight matrix before the first step and every n epochs or steps, and logs it.

    The training is not changed. Several callbacks of this package that ask for the same analysis, selection and
    diagnostics share one analysis, which is made, logged and drawn once, with the smallest of their workspaces, the
    most frequent of their figures and the largest of their ``esd_layers``. Under DDP, FSDP, FSDP2 and tensor
    parallelism (``ModelParallelStrategy``) the layers are divided among the ranks, and all ranks receive the same
    report, equal bit for bit to that of one process. Strategies that train in child processes (``ddp_spawn``,
    ``ddp_notebook``) hand report, history and multipliers back to the process that made the callback.
    If an analysis fails, this is reported once, and the analysis is skipped. The same holds for every other fault of
    this package in analysing, acting on alphas, drawing, logging or printing: it never stops the training, and the next
    analysis is made. Wrong options and an unsuitable Trainer do stop the training, at its start. (If warnings are
    turned into errors, so is the warning of a fault.)

    Log keys (``farms`` stands for the analysis's label: ``farms`` or ``whole``, with ``-2``, ... for a second analysis
    of that label in one Trainer; scalars go to every logger, the rest to TensorBoard, and, as far as they have a place
    for it, to Weights & Biases, MLflow and any logger with a ``log_image`` of Lightning's form):

    ===================================  ==============================================================================
    ``farms/alpha/<layer>``              PL_Alpha_Hill of a layer
    ``farms/alpha_mean``, ``alpha_std``  mean and standard deviation over the analysed layers
    ``farms/relative_alpha/<layer>``     alpha divided by that of the shuffled weight, if ``diagnostics.twin``
    ``farms/mp_spikes/<layer>``          eigenvalues beyond the random bulk, if ``diagnostics.marchenko_pastur``
    ``farms/p_value/<layer>``            goodness of the power-law fit, if ``diagnostics.p_value``
    ``farms/time/analysis_seconds``      wall-clock time that the training waits for the analysis
    ``farms/time/logging_seconds``       wall-clock time of drawing and writing its pictures
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
        analysis: method of analysis: ``FARMS(...)`` or ``WholeMatrix(...)``.
        every_n_epochs: analyse after every n-th epoch (and before the first step).
        every_n_steps: analyse after every n-th optimizer step instead (and before the first); the steps of all
            optimizers count.
        start_epoch: number of epochs before the first analysis, from which ``every_n_epochs`` is counted; an adjusted
            hyperparameter keeps its base values until then.
        selection: the weights to analyse; other layers keep the base value of an adjusted hyperparameter.
        diagnostics: error bars, goodness of fit and random baselines.
        workspace: bytes for the analysis, at least 1.
        where: where the Gram matrices of weights on a GPU are decomposed: ``"device"``, ``"host"``, or ``"auto"``, by
            which the table in :mod:`lightning_farms.functional.eigensolvers` decides.
        overlap: whether to analyse a copy of the weights in a thread while the epoch's last validation runs. The copy
            is made when that validation starts. This takes effect with one process, if the validation follows the
            epoch's last step. Report and multipliers are the same, and time is saved if the validation leaves a core
            idle.
        figures_every_n_epochs: write labelled figures at the first analysis after every n-th epoch, and at the end of
            training; 0: at the end only.
        esd_layers: number of layers, evenly spread over depth, whose ESD is drawn.
        summary: whether to print a table of all layers at the end of training.

    Attributes:
        report: the last :class:`~lightning_farms.analysis.SpectralReport`; None before the first analysis.
        history: alphas of all analyses, a :class:`~lightning_farms.analysis.history.LayerHistory`.

    Raises:
        TypeError: ``analysis``, ``selection`` or ``diagnostics`` is of the wrong kind.
        ValueError: an interval or a number is out of range, or a pattern of ``selection`` matches no layer (when the
            fit starts).
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
        where: Where = "auto",
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
        check_where(where)
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
        self.where = where
        self.overlap = overlap
        self.figures_every_n_epochs = figures_every_n_epochs
        self.esd_layers = esd_layers
        self.summary = summary
        self._module: int | None = None  # id of the module of the last fit
        self._handover = Handover()
        self._reset()

    def _reset(self) -> None:
        self._report: SpectralReport | None = None
        self._history = LayerHistory()
        self._analysed: Moment | None = None  # moment of the last analysis
        self._evaluates = False  # whether the state to be restored belongs to an evaluation, not to a fit
        self._shared: SharedAnalysis | None = None  # exists while a fit runs
        self._warn_once = WarnOnce(warn)
        self._faults = Faults(type(self).__name__, warn)

    @property
    def report(self) -> SpectralReport | None:
        """The last report; None before the first analysis."""
        self._take_over()
        return self._report

    @property
    def history(self) -> LayerHistory:
        """Alphas of all analyses, and the values that were adjusted."""
        self._take_over()
        return self._history

    # ---- state -------------------------------------------------------------------------------------------------------

    @property
    @guarded_value(
        "its state was saved under a shorter key, without what it analyses", lambda self: type(self).__qualname__
    )
    def state_key(self) -> str:
        """Key unique to the class and what it analyses; other options may change between a run and its resumption."""
        return self._key(self.selection)

    def _key(self, selection: Selection) -> str:
        return self._generate_state_key(analysis=self.analysis, selection=selection, diagnostics=self.diagnostics)

    @guarded
    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Accept the state of a run from when factors of LoRA pairs, not their products, were analysed by default.

        If an evaluation restores the checkpoint, a history that a fit has left in this callback is kept.
        """
        self._evaluates = trainer.state.fn != TrainerFn.FITTING
        states, earlier = checkpoint.get("callbacks", {}), self._key(replace(self.selection, low_rank_products=False))
        taken = {callback.state_key for callback in trainer.callbacks}  # type: ignore[attr-defined]
        if self.state_key not in states and earlier in states and earlier not in taken:
            states[self.state_key] = states[earlier]

    def _saved(self) -> dict[str, Any]:
        """The moment of the last analysis, and the history."""
        analysed = None if self._analysed is None else self._analysed._asdict()
        return {"version": _STATE_VERSION, "analysed": analysed, "history": self._history.state_dict()}

    def _restore(self, state: dict[str, Any]) -> None:
        version, analysed = state.get("version"), state.get("analysed")
        if version not in (1, _STATE_VERSION):
            raise ValueError(
                f"Expected a {type(self).__name__} state of version 1 or {_STATE_VERSION}, but the checkpoint has "
                f"{version!r}; remove the callback's state from it or use the version that wrote it."
            )
        if analysed is not None:
            analysed = Moment(analysed, 0) if version == 1 else Moment(**analysed)  # version 1 counted epochs only
        history = LayerHistory.from_state_dict(state["history"])
        keeps, self._evaluates = self._evaluates and bool(self._history.epochs), False
        self._analysed, self._history = analysed, self._history if keeps else history

    # ---- hooks -------------------------------------------------------------------------------------------------------

    @guarded_at_start
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer whose weights this callback cannot see as a whole, and forget an earlier run."""
        if stage != "fit":
            return
        check_strategy(trainer.strategy, type(self).__name__)
        if self._is_needed_elsewhere(trainer):
            raise misconfiguration(
                f"{type(self).__name__} takes part in the fit of another Trainer, which is still running. Give each "
                "Trainer a callback of its own."
            )
        if (trainer.global_step == 0 and trainer.current_epoch == 0) or self._module != id(pl_module):
            self._reset()
        self._module = id(pl_module)
        forget_analyses(trainer)

    @guarded_at_start
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Join the callbacks that ask for the same analysis, and refuse a pattern that matches no layer."""
        self._subscribe(trainer)
        with whole_shapes(trainer):
            next(layer_weights(pl_module, self.selection, values=False), None)

    @guarded_at_start
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the first analysis, before the first step; after a resumption only if one has become due since."""
        if not trainer.loggers and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            warn(
                f"{type(self).__name__} has no logger to write to: its report and history are still available. "
                "Give the Trainer a TensorBoardLogger to see histograms, heat maps and spectra."
            )
        if trainer.max_epochs is not None and -1 < trainer.max_epochs < self.start_epoch:
            warn(
                f"{type(self).__name__}: start_epoch={self.start_epoch} comes after the last epoch "
                f"(max_epochs={trainer.max_epochs}), so that nothing will be analysed."
            )
        with self._faults.contained("the run could not be described; training goes on"):
            describe_run(trainer, self)
        self._catch_up(trainer, pl_module, passing=USER_ERRORS)

    @guarded
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock, and make up for an analysis missed by resuming from an epoch's last step."""
        self._catch_up(trainer, pl_module)
        self._subscribe(trainer).start_epoch()

    @guarded
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Analyse after every n-th step, if asked for."""
        now = Moment.batch_end(trainer)
        analysed = {} if self.every_n_steps is None else self._analyse_if_due(trainer, pl_module, now)
        monitored = analysed | self._write(trainer, pl_module)
        if monitored:
            pl_module.log_dict(monitored, on_step=True, on_epoch=False, logger=False, batch_size=1)

    @guarded
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's analysis, if it is to overlap with a validation after the epoch's last step."""
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        last_step_done = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        if not (fitting and last_step_done and trainer.world_size == 1):
            return
        now = Moment.epoch_end(trainer)
        if self.is_due(now):
            self._subscribe(trainer).overlap(pl_module, now)

    @guarded
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse and log; mean and spread are logged by the module, so that other callbacks can monitor them."""
        monitored = self._analyse_if_due(trainer, pl_module, Moment.epoch_end(trainer))
        monitored |= self._write(trainer, pl_module, epoch_end=True)
        if trainer.world_size > 1:  # ranks that log different keys would wait for each other in vain
            monitored = {key: monitored.get(key, math.nan) for key in trainer.strategy.broadcast(list(monitored))}
        pl_module.log_dict(monitored, logger=False, batch_size=1, sync_dist=trainer.world_size > 1)

    @guarded
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the labelled figures of the whole run."""
        self._subscribe(trainer).draw_figures(trainer, pl_module)

    @guarded_at_end
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no thread behind, as Lightning calls no teardown after an exception or an interrupt."""
        shared, self._shared = self._shared, None
        try:
            if shared is not None:
                shared.drop()
        finally:
            self._hand_over(trainer)

    @guarded_at_end
    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the closing table, one for all callbacks that share the analysis."""
        if stage == "fit" and self._shared is not None:
            shared, self._shared = self._shared, None
            try:
                shared.close(trainer, pl_module)
            finally:
                self._hand_over(trainer)

    # ---- for the shared analysis -------------------------------------------------------------------------------------

    def is_due(self, now: Moment) -> bool:
        """Whether an analysis has become due since the last one."""
        return self._schedule.is_due(now, self._analysed)

    def analysed_at(self) -> Moment | None:
        """The moment of the last analysis."""
        return self._analysed

    def adjusted_values(self) -> dict[str, dict[str, float]]:
        """{first part of the log keys: {layer: adjusted value}}, logged after every epoch and analysis."""
        return {}

    def factors(self) -> dict[str, dict[str, float]]:
        """{title: {weight: multiplier}} for the closing table."""
        return {}

    def balanced_layers(self) -> set[str]:
        """Weights of the report whose layers are balanced; empty if none is."""
        return set()

    def scalars(self) -> dict[str, float]:
        """{last part of the log key: value} for scalars that are not per layer; always has all of its keys."""
        return {}

    def remarks(self) -> list[str]:
        """Lines below the closing table."""
        return []

    # ---- between processes ------------------------------------------------------------------------------------------

    def _results(self) -> dict[str, Any]:
        return {**super()._results(), "report": rows_of(self._report)}

    def _accept(self, results: dict[str, Any]) -> None:
        super()._accept(results)
        self._report = report_of(results["report"])

    def _take_over(self) -> None:
        if self._shared is None:  # no fit runs here
            super()._take_over()

    # ---- for subclasses ----------------------------------------------------------------------------------------------

    def _before_analysis(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Follow changes of the model since the last analysis."""

    def _on_report(self, trainer: Trainer, report: SpectralReport) -> dict[str, dict[str, float]]:
        """Act on a new report; returns what the history keeps besides alpha, {quantity: {layer: value}}."""
        return {}

    def _release(self) -> None:
        """Leave the optimizers as they were; called last at teardown, and after an exception or an interrupt."""

    def _is_needed_elsewhere(self, trainer: Trainer) -> bool:
        """Whether the callback takes part in another Trainer's fit, which is still running."""
        return runs_elsewhere(trainer, self)

    # ---- stages ------------------------------------------------------------------------------------------------------

    @property
    def _schedule(self) -> Schedule:
        return Schedule(self.every_n_epochs, self.every_n_steps, self.start_epoch)

    def _subscribe(self, trainer: Trainer) -> SharedAnalysis:
        """Return the shared analysis; it is joined when the fit starts, or later if that failed."""
        if self._shared is None:
            options = AnalysisOptions(self.analysis, self.selection, self.diagnostics)
            self._shared = shared_analysis(trainer, options, self)
        return self._shared

    def _catch_up(
        self, trainer: Trainer, pl_module: LightningModule, passing: tuple[type[Exception], ...] = ()
    ) -> None:
        """Analyse between two epochs if that is due, i.e. before the first epoch or after a resumption."""
        monitored = self._analyse_if_due(trainer, pl_module, Moment.now(trainer), passing)
        monitored |= self._write(trainer, pl_module)
        trainer.callback_metrics.update({key: torch.tensor(value, device="cpu") for key, value in monitored.items()})

    def _analyse_if_due(
        self, trainer: Trainer, pl_module: LightningModule, now: Moment, passing: tuple[type[Exception], ...] = ()
    ) -> dict[str, float]:
        """Make the analysis of this moment and act on it, if it is due; returns what other callbacks can monitor."""
        with self._faults.contained("an analysis was skipped; training goes on", passing):
            if not self.is_due(now):
                return {}
            with self._faults.contained("changes of the model could not be taken up; training goes on"):
                self._before_analysis(trainer, pl_module)
            self._analysed = now
            report = self._subscribe(trainer).take(trainer, pl_module, now)
            if report is None:
                return {}
            self._report = report
            quantities: dict[str, dict[str, float]] = {}
            with self._faults.contained("an analysis could not be used; training goes on", passing):
                quantities = self._on_report(trainer, report)
            self._history.append(now.epochs, {"alpha": report.alphas, **quantities}, step=now.step)
            return self._subscribe(trainer).alpha_moments()
        return {}

    def _write(self, trainer: Trainer, pl_module: LightningModule, *, epoch_end: bool = False) -> dict[str, float]:
        """Write the results once all callbacks that share them have acted; returns more that can be monitored."""
        with self._faults.contained("results could not be logged; training goes on"):
            return self._subscribe(trainer).write(trainer, pl_module, self, epoch_end=epoch_end)
        return {}
