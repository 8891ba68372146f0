"""Base class of callbacks that adjust a hyperparameter of the optimizer layer by layer."""

from __future__ import annotations

import math
from abc import ABC
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT

from lightning_farms.analysis.method import FARMS, SpectralMethod
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.selection import PatternError
from lightning_farms.balancing.alpha_map import AlphaMap
from lightning_farms.balancing.balancer import Balancer
from lightning_farms.balancing.control import Control
from lightning_farms.balancing.hyperparameter import Hyperparameter, touched
from lightning_farms.callbacks._guard import guarded, guarded_at_start
from lightning_farms.callbacks._spectral.shared_analysis import logged_step
from lightning_farms.callbacks._spectral.strategies import check_optimizers, whole_shapes
from lightning_farms.callbacks.spectral_monitor import SpectralMonitor
from lightning_farms.common.lightning_packages import misconfiguration
from lightning_farms.loggers.sinks import sinks


class LayerwiseBalance(SpectralMonitor, ABC):
    r"""A :class:`SpectralMonitor` that also gives every layer l a hyperparameter :math:`h_l(t) = h(t) \, m(\alpha_l)`.

    :math:`h(t)` is the value in the optimizer's group, set by any scheduler; it stays there, and the multiplier is
    applied only while the optimizer steps. Bias and norm parameters follow the layer to which they belong
    (:func:`lightning_farms.analysis.parameter_layers`), unless ``control`` says otherwise. Parameters that belong to no
    analysed layer keep the base value, and so do layers that were skipped or are not balanced. Multipliers are computed
    over the layers whose weight an optimizer trains. Weights stored in one parameter (queries, keys and values; the
    gates of a recurrent layer) count as one layer (``attn.in_proj_weight``) with one multiplier, by the mean of their
    alphas. Optimizers that are replaced during training are noticed before the next batch, and parameters that are
    replaced or added at the next epoch or analysis. Options that change between a run and its resumption take effect
    with the next analysis.

    Args:
        alpha_map: the map from alphas to multipliers.
        analysis: method of analysis: ``FARMS(...)`` or ``WholeMatrix(...)``.
        every_n_epochs: analyse after every n-th epoch (and before the first step).
        control: smoothing and bounds of the multipliers, and the choice of layers that have one.
        **options: options of :class:`SpectralMonitor`.

    Attributes:
        multipliers: {layer: multiplier} that the next update uses; empty before the first analysis.

    Raises:
        TypeError: ``alpha_map`` or ``control`` is of the wrong kind.
        MisconfigurationException: a second callback adjusts the same hyperparameter, or the optimizer cannot take
            layer-wise values (LBFGS, DeepSpeed's).
    """

    _adjusts: ClassVar[Hyperparameter]

    def __init__(
        self,
        alpha_map: AlphaMap,
        analysis: SpectralMethod = FARMS(),
        every_n_epochs: int = 1,
        *,
        control: Control = Control(),
        **options: Any,  # noqa: ANN401
    ) -> None:
        if not isinstance(alpha_map, AlphaMap):
            raise TypeError(f"Expected argument `alpha_map` to be LinearMap(...) or the like, but got {alpha_map!r}.")
        if not isinstance(control, Control):
            raise TypeError(f"Expected argument `control` to be Control(...), but got {control!r}.")
        self.alpha_map = alpha_map
        self.control = control
        super().__init__(analysis, every_n_epochs, **options)
        self.diagnostics = control.completed(self.diagnostics)

    def _reset(self) -> None:
        super()._reset()
        self._balancer: Balancer | None = None  # exists while a fit runs
        self._state: dict[str, Any] = {}  # the balancer's state, while there is no balancer
        self._multipliers: dict[str, float] = {}
        self._looked_at = 0  # the step after which it was last checked whether weights move

    @property
    def multipliers(self) -> dict[str, float]:
        """{layer: multiplier} that the next update uses; empty before the first analysis."""
        self._take_over()
        return self._multipliers if self._balancer is None else self._balancer.multipliers

    # ---- state -------------------------------------------------------------------------------------------------------

    def _saved(self) -> dict[str, Any]:
        """The monitor's state, the averages of alpha, and the multipliers with their ramp."""
        state = self._state if self._balancer is None else self._balancer.state_dict()
        return {**state, **super()._saved()}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self._state = {name: value for name, value in state.items() if name != "history"}  # which the monitor keeps
        if self._balancer is not None:  # FSDP and FSDP2 restore the state after on_fit_start
            self._balancer.load_state_dict(self._state)

    def _results(self) -> dict[str, Any]:
        return {**super()._results(), "multipliers": dict(self.multipliers)}

    def _accept(self, results: dict[str, Any]) -> None:
        super()._accept(results)
        self._multipliers = results["multipliers"]

    # ---- hooks -------------------------------------------------------------------------------------------------------

    @guarded_at_start
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second callback that adjusts the same hyperparameter, as the multipliers would compound."""
        super().setup(trainer, pl_module, stage)
        for other in trainer.callbacks if stage == "fit" else ():  # type: ignore[attr-defined]
            both = self._touched() & other._touched() if isinstance(other, LayerwiseBalance) else set()
            if both and other is not self:
                raise misconfiguration(
                    f"{type(self).__name__} and {type(other).__name__} both adjust the {both.pop().name}, so that "
                    "their multipliers would compound. Keep one (SpectralMonitor(analysis=...) logs a second "
                    "analysis without adjusting anything), or leave out `compensate_weight_decay` if that adjusts it."
                )

    @guarded_at_start
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the optimizers, which exist from now on."""
        super().on_fit_start(trainer, pl_module)
        check_optimizers(trainer.optimizers, type(self).__name__, self._adjusts.name)
        self._hook(trainer, pl_module)

    @guarded_at_start
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put restored multipliers in force, then analyse if that is due."""
        with self._faults.contained("restored multipliers could not be put in force; training goes on"):
            if self._balancer is not None:
                self._balancer.apply(trainer.global_step)
        super().on_train_start(trainer, pl_module)

    @guarded
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook new optimizers and parameters, and make up for a skipped analysis."""
        with self._faults.contained("changes of the model could not be taken up; training goes on"):
            self._hook_anew(trainer, pl_module)
        super().on_train_epoch_start(trainer, pl_module)

    @guarded
    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: object, batch_idx: int) -> None:
        """Hook optimizers that have been replaced, since the next update may be theirs."""
        if self._balancer is not None and self._balancer.optimizers != trainer.optimizers:
            self._hook_anew(trainer, pl_module)

    @guarded
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Check that the multipliers are used, move them one step along their ramp, and analyse if that is due."""
        with self._faults.contained("the multipliers stay as they were; training goes on"):
            if self._balancer is not None:
                self._prove(self._balancer, trainer)
                if self._balancer.on_its_way():
                    self._balancer.apply(trainer.global_step)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    # ---- for the shared analysis -------------------------------------------------------------------------------------

    def adjusted_values(self) -> dict[str, dict[str, float]]:
        """{"layer_lr/<Optimizer>": {layer: rate}} for layers with an analysed weight."""
        return {} if self._balancer is None else self._balancer.values()

    def scalars(self) -> dict[str, float]:
        """The mean multiplier of the balanced layers."""
        unknown = {f"{self._adjusts.quantity}_multiplier_mean": math.nan}  # a chart for it is made before training
        return unknown if self._balancer is None else unknown | self._balancer.means()

    def factors(self) -> dict[str, dict[str, float]]:
        """The multiplier of each of the report's weights, also of those that share one; NaN if it is not in force."""
        return {self._adjusts.factor: {} if self._balancer is None else self._balancer.factors()}

    def balanced_layers(self) -> set[str]:
        """Weights of the report whose alphas determine the multipliers."""
        return set() if self._balancer is None else self._balancer.balanced()

    def remarks(self) -> list[str]:
        """The mean multiplier, and any values that are not in force."""
        of_balancer = [] if self._balancer is None else self._balancer.remarks()
        return [*super().remarks(), *of_balancer]

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _touched(self) -> set[Hyperparameter]:
        return touched(self._adjusts, compensated=self.control.compensate_weight_decay)

    def _warn(self, what: str, message: str) -> None:
        self._warn_once(what, f"{type(self).__name__}: {message}")

    def _hook(self, trainer: Trainer, pl_module: LightningModule) -> None:
        try:
            with whole_shapes(trainer) as original:
                if self._balancer is None:
                    self._balancer = Balancer(
                        pl_module,
                        trainer.optimizers,
                        self.alpha_map,
                        analysis=self.analysis,
                        control=self.control,
                        selection=self.selection,
                        diagnostics=self.diagnostics,
                        key=self._adjusts.key,
                        warn=self._warn,
                    )
                    self._balancer.load_state_dict(self._state)
                self._balancer.hook(trainer.optimizers, original)
            for scaling in self._balancer.scalings:
                scaling.on_trained_change = partial(self._follow, scaling.on_trained_change)
        except PatternError:
            raise
        except (TypeError, ValueError) as error:
            raise misconfiguration(f"{type(self).__name__}: {error}") from error

    def _prove(self, balancer: Balancer, trainer: Trainer) -> None:
        """Check that the updates use the multipliers; if they do not, loggers that accept texts are told, too."""
        known, automatic = balancer.fault, trainer.lightning_module.automatic_optimization
        due = not automatic or trainer.global_step != self._looked_at  # between steps the module may move its weights
        self._looked_at = trainer.global_step
        balancer.prove(trainer.global_step, moves=2 if due else None)
        if balancer.fault not in (None, known):
            label = self.analysis.label if self._shared is None else self._shared.label
            for sink in sinks(trainer):
                sink.text(f"{label}/not_in_force", str(balancer.fault), logged_step(trainer))

    @guarded
    def _follow(self, change: Callable[[], None] | None) -> None:
        """Run the balancer's callback within an optimizer's step, which a fault must not end."""
        if change is not None:
            change()

    def _hook_anew(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook again if optimizers or parameters have been replaced or added, or lazy parameters initialised."""
        if self._balancer is not None and self._balancer.fits(trainer.optimizers):
            return
        try:
            self._hook(trainer, pl_module)
            if self._balancer is not None:
                self._balancer.apply(trainer.global_step)
        except (ValueError, RuntimeError, MisconfigurationException) as error:
            if self._balancer is not None:
                self._balancer.detach()
            self._warn_once.silence("use")  # that warning would come once more, about no layer at all
            self._warn_once("hooks", f"{error} All layers have the base {self._adjusts.name} from now on.")

    def _release(self) -> None:
        """Remove the hooks from the optimizers, and keep what a later fit and the user need."""
        if self._balancer is not None:
            self._state, self._multipliers = self._balancer.state_dict(), self._balancer.multipliers
            self._balancer.detach()
            self._balancer = None

    def _before_analysis(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook_anew(trainer, pl_module)

    def _on_report(self, trainer: Trainer, report: SpectralReport) -> dict[str, dict[str, float]]:
        return {} if self._balancer is None else self._balancer.receive(report, trainer.global_step)
