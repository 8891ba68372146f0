"""Analyse every weight matrix during training, and log what was found."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities import rank_zero_warn
from rich.console import Console

from lightning_farms.analysis import FARMS, LayerSpectrum, SpectralMethod, SpectralReport, analyze
from lightning_farms.callbacks import tensorboard
from lightning_farms.callbacks.history import LayerHistory
from lightning_farms.callbacks.summary import summary_table

_STATE_VERSION = 1


class _Measurement(NamedTuple):
    """One analysis: after how many epochs, what it found (None where it failed), and how long it took."""

    epochs: int
    report: SpectralReport | None
    seconds: float


class SpectralMonitor(Callback):
    """Measures the spectrum of every weight matrix before the first step and after each epoch, and logs it.

    Nothing of the training is changed. Several callbacks of this package with an equal ``analysis`` share one analysis
    an epoch; the first of them (learning-rate callbacks before monitors) logs it. Rank zero analyses, all ranks
    receive the same report. An analysis that fails is reported once and skipped; it never stops the training.

    Log keys (``farms`` stands for the analysis's label: ``farms`` or ``whole``, with ``-2``, ... for a second analysis
    of that label in one Trainer; scalars go to every logger, the rest to TensorBoard):

    ===================================  ==============================================================================
    ``farms/alpha/<layer>``              PL_Alpha_Hill of a layer
    ``farms/alpha_mean``, ``alpha_std``  mean and standard deviation over the analysed layers
    ``farms/time/analysis_seconds``      wall-clock time of the analysis
    ``farms/time/logging_seconds``       wall-clock time of what is written after it, figures included
    ``farms/time/epoch_share``           both by the time of the epoch they follow, themselves included
    ``farms/alpha_histogram``            histogram of alpha over layers, each analysis
    ``farms/alpha_map``                  heat map, layers by epochs, each analysis (colours only)
    ``farms/alpha_map_labelled``         the same as a labelled figure, every ``figures_every_n_epochs`` and at the end
    ``farms/alpha_over_depth``           alpha of every layer, first and now, as often as the labelled figures
    ``farms/esd/<layer>``                ESD with fitted tail of a few layers, as often as the labelled figures
    ===================================  ==============================================================================

    Args:
        analysis: how to analyse: ``FARMS(...)`` or ``WholeMatrix(...)``.
        every_n_epochs: analyse after every n-th epoch (and before the first step).
        figures_every_n_epochs: write labelled figures every n epochs and at the end of training; 0: at the end only.
        esd_layers: number of layers, evenly spread over depth, whose ESD is drawn.
        summary: whether to print a table of all layers at the end of training.

    Attributes:
        report: the last :class:`~lightning_farms.analysis.SpectralReport`, None before the first analysis.
        history: alphas of all analyses, a :class:`~lightning_farms.callbacks.history.LayerHistory`.

    Raises:
        TypeError: ``analysis`` is not an analysis.
        ValueError: an interval or a number is out of range.
        MisconfigurationException: the Trainer's strategy shards the weights (at setup).

    Example:
        >>> monitor = SpectralMonitor(FARMS(aspect_ratio=1.0), every_n_epochs=5)
    """

    def __init__(
        self,
        analysis: SpectralMethod = FARMS(),
        every_n_epochs: int = 1,
        *,
        figures_every_n_epochs: int = 10,
        esd_layers: int = 4,
        summary: bool = True,
    ) -> None:
        if not isinstance(analysis, SpectralMethod):
            raise TypeError(f"Expected argument `analysis` to be FARMS(...) or WholeMatrix(...), but got {analysis!r}.")
        if every_n_epochs < 1:
            raise ValueError(f"Expected argument `every_n_epochs` to be at least 1, but got {every_n_epochs}.")
        for name, value in (("figures_every_n_epochs", figures_every_n_epochs), ("esd_layers", esd_layers)):
            if value < 0:
                raise ValueError(f"Expected argument `{name}` to be 0 or more, but got {value}.")
        self.analysis = analysis
        self.every_n_epochs = every_n_epochs
        self.figures_every_n_epochs = figures_every_n_epochs
        self.esd_layers = esd_layers
        self.summary = summary
        self._module: int | None = None  # the module of the last fit
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

    # ---- state -------------------------------------------------------------------------------------------------------

    @property
    def state_key(self) -> str:
        """Unique for the class and the analysis; other options may change between a run and its resumption."""
        return self._generate_state_key(analysis=self.analysis)

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
        if isinstance(trainer.strategy, (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)):
            raise MisconfigurationException(
                f"{type(self).__name__} needs whole weights on every rank, but {type(trainer.strategy).__name__} "
                'shards them. Use strategy "auto" or "ddp", or run analyze(...) on a consolidated checkpoint.'
            )
        if (trainer.global_step == 0 and trainer.current_epoch == 0) or self._module != id(pl_module):
            self._reset()
        self._module = id(pl_module)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what an earlier fit measured."""
        self._measured, self._epoch_start = None, None

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

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the closing table; a RichProgressBar listed before this callback has gone by now."""
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
        self._log(trainer, {f"{label}/alpha/{name}": alpha for name, alpha in self.report.alphas.items()})
        self._write(trainer, pl_module, epochs)
        return self._summary(label, measured, time.perf_counter() - started)

    def _log(self, trainer: Trainer, scalars: Mapping[str, float]) -> None:
        """Scalars by the layer, straight to the loggers: the module's own log takes half a millisecond a key."""
        finite = _finite(scalars)
        for logger in trainer.loggers if finite else ():
            logger.log_metrics(finite, step=_step(trainer))

    def _measure(self, trainer: Trainer, pl_module: LightningModule, epochs: int) -> _Measurement:
        """The analysis after ``epochs`` epochs: rank zero analyses, every rank receives the report."""
        if self._measured is None or self._measured.epochs != epochs:
            if pl_module.device.type == "cuda":
                torch.cuda.synchronize(pl_module.device)  # so that the time is the analysis's own
            started = time.perf_counter()
            outcome = self._analyse(pl_module) if trainer.is_global_zero else ""
            report = self._report_or_warning(trainer.strategy.broadcast(outcome))
            self._measured = _Measurement(epochs, report, time.perf_counter() - started)
        return self._measured

    def _analyse(self, pl_module: LightningModule, *, keep_eigenvalues: bool = False) -> SpectralReport | str:
        try:
            return analyze(pl_module, self.analysis, keep_eigenvalues=keep_eigenvalues)
        except Exception as error:
            return f"{type(error).__name__}: {error}"

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
        label, step = self._label(trainer), _step(trainer)
        for writer in tensorboard.writers(trainer):
            tensorboard.write_histogram(writer, f"{label}/alpha_histogram", list(self.report.alphas.values()), step)
            tensorboard.write_maps(writer, label, self.history, step)
        if self.figures_every_n_epochs and epochs and epochs % self.figures_every_n_epochs == 0:
            self._write_figures(trainer, pl_module)

    def _write_figures(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert self.report is not None
        self._figures_at = self._analysed
        writers = tensorboard.writers(trainer)
        if not writers:
            return
        self._esd_names = self._esd_names or tensorboard.spread_over_depth(self.report, self.esd_layers)
        chosen: list[LayerSpectrum] = []
        if self._esd_names:
            rows = self._report_or_warning(self._analyse(pl_module, keep_eigenvalues=True)) or ()
            chosen = [row for row in rows if row.name in self._esd_names]
        label, step = self._label(trainer), _step(trainer)
        for writer in writers:
            tensorboard.write_map_figures(writer, label, self.history, step)
            tensorboard.write_depth_figure(writer, label, self.report, self.history, step)
            tensorboard.write_esd_figures(writer, label, chosen, step)

    # ---- several callbacks in one Trainer ----------------------------------------------------------------------------

    def _peers(self, trainer: Trainer) -> list[SpectralMonitor]:
        """Callbacks of an equal analysis, in the order in which they speak."""
        found = [c for c in _monitors(trainer) if c.analysis == self.analysis]
        return sorted(found, key=lambda callback: callback._precedence)

    def _leader(self, trainer: Trainer, epochs: int) -> SpectralMonitor:
        """The one of equal analysis that analyses and logs after ``epochs`` epochs: the first that is due."""
        return next((c for c in self._peers(trainer) if epochs % c.every_n_epochs == 0), self)

    def _speaks(self, trainer: Trainer) -> bool:
        return self._peers(trainer)[0] is self

    def _label(self, trainer: Trainer) -> str:
        """First part of the log keys: the analysis's label, numbered where two analyses share it."""
        same: list[SpectralMethod] = []
        for callback in _monitors(trainer):
            if callback.analysis.label == self.analysis.label and callback.analysis not in same:
                same.append(callback.analysis)
        number = same.index(self.analysis) + 1
        return self.analysis.label if number == 1 else f"{self.analysis.label}-{number}"


def _monitors(trainer: Trainer) -> list[SpectralMonitor]:
    return [callback for callback in trainer.callbacks if isinstance(callback, SpectralMonitor)]  # type: ignore[attr-defined]


def _finite(scalars: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in scalars.items() if math.isfinite(value)}


def _step(trainer: Trainer) -> int:
    """The step under which Lightning logs an epoch's scalars, so that all charts share one axis."""
    return max(0, trainer.fit_loop.epoch_loop._batches_that_stepped - 1)
