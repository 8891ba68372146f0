"""Analyse every weight matrix during training, and log what was found."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, Strategy
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
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
from lightning_farms.callbacks import tensorboard
from lightning_farms.callbacks.background import BackgroundAnalysis
from lightning_farms.callbacks.history import LayerHistory
from lightning_farms.callbacks.question import Question, attempt
from lightning_farms.callbacks.summary import summary_table

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

_STATE_VERSION = 1


class _Measurement(NamedTuple):
    """One analysis: after how many epochs, what it found (None where it failed), and how long the training waited."""

    epochs: int
    report: SpectralReport | None
    seconds: float


class _Overlapped(NamedTuple):
    """An analysis under way: of the weights after how many epochs, and how long it took to start it."""

    epochs: int
    analysis: BackgroundAnalysis
    seconds: float


class SpectralMonitor(Callback):
    """Measures the spectrum of every weight matrix before the first step and after each epoch, and logs it.

    Nothing of the training is changed. Several callbacks of this package that ask for the same analysis, selection and
    diagnostics share one analysis an epoch; the first of them (learning-rate callbacks before monitors) logs it. Under
    DDP and FSDP2 (``ModelParallelStrategy``) the layers are shared out over the ranks, and all ranks receive the same
    report, equal bit for bit to that of one process. An analysis that fails is reported once and skipped; it never
    stops the training.

    Log keys (``farms`` stands for the analysis's label: ``farms`` or ``whole``, with ``-2``, ... for a second analysis
    of that label in one Trainer; scalars go to every logger, the rest to TensorBoard):

    ===================================  ==============================================================================
    ``farms/alpha/<layer>``              PL_Alpha_Hill of a layer
    ``farms/alpha_mean``, ``alpha_std``  mean and standard deviation over the analysed layers
    ``farms/relative_alpha/<layer>``     alpha by that of the shuffled weight, if ``diagnostics.twin``
    ``farms/mp_spikes/<layer>``          eigenvalues beyond the random bulk, if ``diagnostics.marchenko_pastur``
    ``farms/p_value/<layer>``            goodness of the power-law fit, if ``diagnostics.p_value``
    ``farms/time/analysis_seconds``      wall-clock time that the training waits for the analysis
    ``farms/time/logging_seconds``       wall-clock time of what is written after it, figures included
    ``farms/time/epoch_share``           both by the time of the epoch they follow, themselves included
    ``farms/alpha_histogram``            histogram of alpha over layers, each analysis
    ``farms/alpha_map``                  heat map, layers by epochs, each analysis (colours only)
    ``farms/alpha_map_labelled``         the same as a labelled figure, every ``figures_every_n_epochs`` and at the end
    ``farms/alpha_over_depth``           alpha of every layer, first and now, as often as the labelled figures
    ``farms/esd/<layer>``                ESD of a few layers with fitted tail and random bulk, as often as these figures
    ===================================  ==============================================================================

    Args:
        analysis: how to analyse: ``FARMS(...)`` or ``WholeMatrix(...)``.
        every_n_epochs: analyse after every n-th epoch (and before the first step).
        selection: which weights to analyse.
        diagnostics: error bars, goodness of fit and random baselines.
        workspace: bytes for the analysis, at least 1.
        overlap: analyse a copy of the weights, as they are when the epoch's last validation starts, in a thread of its
            own while that validation runs; of effect in one process, and where validation follows the epoch's last
            step. Report and multipliers are the same. It saves time where the validation leaves a core idle.
        figures_every_n_epochs: write labelled figures every n epochs and at the end of training; 0: at the end only.
        esd_layers: number of layers, evenly spread over depth, whose ESD is drawn.
        summary: whether to print a table of all layers at the end of training.

    Attributes:
        report: the last :class:`~lightning_farms.analysis.SpectralReport`, None before the first analysis.
        history: alphas of all analyses, a :class:`~lightning_farms.callbacks.history.LayerHistory`.

    Raises:
        TypeError: ``analysis``, ``selection`` or ``diagnostics`` is no such thing.
        ValueError: an interval or a number is out of range, or a pattern of ``selection`` fits no layer (when the fit
            starts).
        MisconfigurationException: the Trainer's strategy shards the weights and is not FSDP2 (at setup).

    Example:
        >>> monitor = SpectralMonitor(FARMS(aspect_ratio=1.0), every_n_epochs=5)
    """

    def __init__(
        self,
        analysis: SpectralMethod = FARMS(),
        every_n_epochs: int = 1,
        *,
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
        for name, value in (("every_n_epochs", every_n_epochs), ("workspace", workspace)):
            if value < 1:
                raise ValueError(f"Expected argument `{name}` to be at least 1, but got {value}.")
        for name, value in (("figures_every_n_epochs", figures_every_n_epochs), ("esd_layers", esd_layers)):
            if value < 0:
                raise ValueError(f"Expected argument `{name}` to be 0 or more, but got {value}.")
        self.analysis = analysis
        self.every_n_epochs = every_n_epochs
        self.selection = selection
        self.diagnostics = diagnostics
        self.workspace = workspace
        self.overlap = overlap
        self.figures_every_n_epochs = figures_every_n_epochs
        self.esd_layers = esd_layers
        self.summary = summary
        self._module: int | None = None  # the module of the last fit
        self._overlapped: _Overlapped | None = None
        self._reset()

    def _reset(self) -> None:
        self.report: SpectralReport | None = None
        self.history = LayerHistory()
        self._analysed: int | None = None  # epochs that were complete at the last analysis
        self._measured: _Measurement | None = None  # shared with callbacks of equal analysis
        self._figures_at: int | None = None
        self._esd_names: list[str] = []
        self._epoch_start: float | None = None
        self._warned = False
        self._warned_of_pictures = False

    # ---- state -------------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Unique for the class and what it analyses; other options may change between a run and its resumption."""
        return self._generate_state_key(analysis=self.analysis, selection=self.selection, diagnostics=self.diagnostics)

    def state_dict(self) -> dict[str, Any]:
        """Last analysed epoch and history, in plain types."""
        return {"version": _STATE_VERSION, "analysed": self._analysed, "history": self.history.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the values; they take effect when the fit starts."""
        if state_dict.get("version") != _STATE_VERSION:
            raise ValueError(
                f"Expected a {type(self).__name__} state of version {_STATE_VERSION}, but the checkpoint has "
                f"{state_dict.get('version')!r}; remove the callback's state from it or use the version that wrote it."
            )
        self._analysed = state_dict["analysed"]
        self.history = LayerHistory.from_state_dict(state_dict["history"])

    # ---- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a Trainer whose weights this callback cannot see whole; forget an earlier run."""
        if stage != "fit":
            return
        if isinstance(trainer.strategy, self._refused_strategies):
            raise MisconfigurationException(
                f"{type(self).__name__} cannot use weights that {type(trainer.strategy).__name__} shards. Use "
                'strategy "auto" or "ddp" (SpectralMonitor also works with ModelParallelStrategy, which is FSDP2), or '
                "run analyze(...) on a consolidated checkpoint."
            )
        if (trainer.global_step == 0 and trainer.current_epoch == 0) or self._module != id(pl_module):
            self._reset()
        self._module = id(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an earlier fit measured; refuse a pattern that fits no layer."""
        self._measured, self._epoch_start = None, None
        next(layer_weights(pl_module, self.selection, values=False), None)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """First analysis, before the first step; on resumption only if the checkpoint's is behind."""
        if not trainer.loggers and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            rank_zero_warn(
                f"{type(self).__name__} has no logger to write to: its report and history are still available. "
                "Give the Trainer a TensorBoardLogger to see histograms, heat maps and spectra."
            )
        self._catch_up(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's clock, and make up for an analysis that a checkpoint in the epoch's last step skipped."""
        self._catch_up(trainer, pl_module)
        self._epoch_start = time.perf_counter()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the epoch's analysis, if it is to overlap with a validation after the epoch's last step."""
        epochs = trainer.current_epoch + 1
        last_step_done = trainer.fit_loop.epoch_loop.batch_progress.is_last_batch
        wanted = self.overlap and trainer.world_size == 1 and epochs % self.every_n_epochs == 0
        fitting = trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking
        if wanted and fitting and last_step_done and self._leader(trainer, epochs) is self:
            self._drop_overlapped()
            self._overlapped = self._start_overlapped(pl_module, epochs)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Analyse and log; mean and spread go through the module, so that other callbacks can monitor them."""
        epochs = trainer.current_epoch + 1
        summary = self._update(trainer, pl_module, epochs) if epochs % self.every_n_epochs == 0 else {}
        self._log(trainer, self._rates(trainer))
        pl_module.log_dict(summary, sync_dist=trainer.world_size > 1)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draw the labelled figures of the whole run."""
        if self.report is not None and self._speaks(trainer) and self._analysed != self._figures_at:
            self._write_figures(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave no thread behind: Lightning calls no teardown after an exception or an interrupt."""
        self._drop_overlapped()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the closing table; a RichProgressBar listed before this callback has gone by now."""
        self._drop_overlapped()
        wanted = stage == "fit" and self.summary and trainer.is_global_zero
        if wanted and self.report is not None and self._speaks(trainer):
            Console().print(summary_table(self.report, self.history, self._current_multipliers()))

    # ---- for subclasses ----------------------------------------------------------------------------------------------

    def _on_report(self, trainer: Trainer, report: SpectralReport) -> Mapping[str, Mapping[str, float]]:
        """Act on a new report; returns what the history keeps beside alpha, {quantity: {layer: value}}."""
        return {}

    def _rates(self, trainer: Trainer) -> dict[str, float]:
        """Scalars that are logged after every epoch, analysed or not."""
        return {}

    def _current_multipliers(self) -> dict[str, float] | None:
        return None

    _refused_strategies: tuple[type[Strategy], ...] = (DeepSpeedStrategy, FSDPStrategy)
    _precedence = 1  # learning-rate callbacks, 0, speak for the monitors of an equal analysis

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _catch_up(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epochs = trainer.current_epoch
        due = epochs - epochs % self.every_n_epochs
        if self._analysed is None or self._analysed < due:
            self._log(trainer, {**self._update(trainer, pl_module, epochs), **self._rates(trainer)})

    def _update(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> dict[str, float]:
        """Analyse, unless a callback of equal analysis has done so, and log it; returns what sums it up."""
        leader = self._leader(trainer, epochs)
        measured = leader._measure(trainer, pl_module, epochs)
        self._analysed = epochs
        if measured.report is None:
            return {}
        self.report = measured.report
        quantities = self._on_report(trainer, self.report)
        self.history.append(epochs, {"alpha": self.report.alphas, **quantities})
        if leader is not self:
            return {}
        started = time.perf_counter()
        label = self._label(trainer)
        for quantity in self._question.columns():
            self._log(trainer, {f"{label}/{quantity}/{row.name}": getattr(row, quantity) for row in self.report})
        self._write(trainer, pl_module, epochs)
        return self._summary(label, measured, time.perf_counter() - started)

    def _log(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        """Scalars by the layer, straight to the loggers: the module's own log takes half a millisecond a key."""
        finite = _finite(scalars)
        for logger in trainer.loggers if finite else ():
            logger.log_metrics(finite, step=_step(trainer))

    def _measure(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> _Measurement:
        """The analysis after ``epochs`` epochs; all ranks share it, and receive the same report."""
        if self._measured is None or self._measured.epochs != epochs:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)  # so that the time is the analysis's own
            started = time.perf_counter()
            overlapped = self._overlapped if self._overlapped and self._overlapped.epochs == epochs else None
            if overlapped is None:
                outcome = self._question.ask(trainer, pl_module, self.workspace)
            else:
                outcome = attempt(overlapped.analysis.report)
                self._overlapped, started = None, started - overlapped.seconds
            self._measured = _Measurement(epochs, self._report_or_warning(outcome), time.perf_counter() - started)
        return self._measured

    def _spectra(self, trainer: Trainer, pl_module: LightningModule, names: list[str]) -> list[LayerSpectrum]:
        """Rows of the named layers, with their eigenvalues on rank zero."""
        outcome = self._question.ask_for_spectra(trainer, pl_module, self.workspace, names)
        return [row for row in self._report_or_warning(outcome) or () if row.name in names]

    def _start_overlapped(self, pl_module: LightningModule, epochs: int) -> _Overlapped | None:
        """None where the weights cannot be copied: the epoch's end then does without, or says what is wrong."""
        started = time.perf_counter()
        analysis = self._question.ask_in_background(pl_module, self.workspace)
        return None if analysis is None else _Overlapped(epochs, analysis, time.perf_counter() - started)

    def _drop_overlapped(self) -> None:
        if self._overlapped is not None:
            self._overlapped.analysis.close()
            self._overlapped = None

    def _report_or_warning(self, outcome: SpectralReport | str) -> SpectralReport | None:
        if not isinstance(outcome, str):
            return outcome
        if not self._warned:
            rank_zero_warn(f"The spectral analysis failed and was skipped; training goes on. {outcome}")
            self._warned = True
        return None

    def _summary(self, label: str, measured: _Measurement, logging_seconds: float) -> dict[str, float]:
        assert measured.report is not None
        scalars = {
            f"{label}/alpha_mean": measured.report.mean_alpha,
            f"{label}/alpha_std": measured.report.std_alpha,
            f"{label}/time/analysis_seconds": measured.seconds,
            f"{label}/time/logging_seconds": logging_seconds,
        }
        if self._epoch_start is not None:
            epoch_seconds = time.perf_counter() - self._epoch_start
            scalars[f"{label}/time/epoch_share"] = (measured.seconds + logging_seconds) / epoch_seconds
        return _finite(scalars)

    # ---- TensorBoard -------------------------------------------------------------------------------------------------

    def _write(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> None:
        assert self.report is not None
        label, step, alphas = self._label(trainer), _step(trainer), list(self.report.alphas.values())

        def write(writer: SummaryWriter) -> None:
            tensorboard.write_histogram(writer, f"{label}/alpha_histogram", alphas, step)
            tensorboard.write_maps(writer, label, self.history, step)

        self._draw(trainer, write)
        if self.figures_every_n_epochs and epochs and epochs % self.figures_every_n_epochs == 0:
            self._write_figures(trainer, pl_module)

    def _write_figures(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.report is not None
        self._figures_at = self._analysed
        if not trainer.strategy.broadcast(bool(tensorboard.writers(trainer))):
            return  # on all ranks, or on none: other ranks than zero may have no loggers, and are needed
        self._esd_names = self._esd_names or tensorboard.spread_over_depth(self.report, self.esd_layers)
        chosen = self._spectra(trainer, pl_module, self._esd_names) if self._esd_names else []
        label, step, report = self._label(trainer), _step(trainer), self.report

        def write(writer: SummaryWriter) -> None:
            tensorboard.write_map_figures(writer, label, self.history, step)
            tensorboard.write_depth_figure(writer, label, report, self.history, step)
            tensorboard.write_esd_figures(writer, label, chosen, step)

        self._draw(trainer, write)

    def _draw(self, trainer: Trainer, write: Callable[[SummaryWriter], None]) -> None:
        """Write pictures; what goes wrong is warned of once."""
        try:
            for writer in tensorboard.writers(trainer):
                write(writer)
        except Exception as error:
            if not self._warned_of_pictures:
                rank_zero_warn(
                    f"Pictures of the analysis could not be written; training goes on. {type(error).__name__}: {error}"
                )
            self._warned_of_pictures = True

    # ---- several callbacks in one Trainer ----------------------------------------------------------------------------

    @property
    def _question(self) -> Question:
        return Question(self.analysis, self.selection, self.diagnostics)

    def _peers(self, trainer: Trainer) -> list[SpectralMonitor]:
        """Callbacks that ask for the same, in the order in which they speak."""
        found = [c for c in _monitors(trainer) if c._question == self._question]
        return sorted(found, key=lambda callback: callback._precedence)

    def _leader(self, trainer: Trainer, epochs: int) -> SpectralMonitor:
        """The one of equal analysis that analyses and logs after ``epochs`` epochs: the first that is due."""
        return next((c for c in self._peers(trainer) if epochs % c.every_n_epochs == 0), self)

    def _speaks(self, trainer: Trainer) -> bool:
        return self._peers(trainer)[0] is self

    def _label(self, trainer: Trainer) -> str:
        """First part of the log keys: the analysis's label, numbered where two analyses share it."""
        same: list[Question] = []
        for callback in _monitors(trainer):
            if callback.analysis.label == self.analysis.label and callback._question not in same:
                same.append(callback._question)
        number = same.index(self._question) + 1
        return self.analysis.label if number == 1 else f"{self.analysis.label}-{number}"


def _monitors(trainer: Trainer) -> list[SpectralMonitor]:
    return [callback for callback in trainer.callbacks if isinstance(callback, SpectralMonitor)]  # type: ignore[attr-defined]


def _finite(scalars: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in scalars.items() if math.isfinite(value)}


def _step(trainer: Trainer) -> int:
    """The step under which Lightning logs an epoch's scalars, so that all charts share one axis."""
    return max(0, trainer.fit_loop.epoch_loop._batches_that_stepped - 1)
