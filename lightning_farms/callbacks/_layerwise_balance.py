"""What all callbacks that adjust a hyperparameter of the optimizer layer by layer have in common."""

from __future__ import annotations

import math
from abc import ABC
from collections import ChainMap, Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_farms.analysis import (
    FARMS,
    WORKSPACE,
    Diagnostics,
    Selection,
    SpectralMethod,
    SpectralReport,
    layer_weights,
)
from lightning_farms.balancing._ramp import MultiplierRamp
from lightning_farms.balancing.alpha_map import AlphaMap
from lightning_farms.balancing.control import Control
from lightning_farms.balancing.hyperparameter import Hyperparameter
from lightning_farms.balancing.warnings import warnings_of_control
from lightning_farms.callbacks._spectral.strategies import structure, whole_shapes
from lightning_farms.callbacks.spectral_monitor import SpectralMonitor, monitors
from lightning_farms.functional.smoothing import moving_average
from lightning_farms.functional.vectors import vector
from lightning_farms.optim import LayerwiseScaling


class LayerwiseBalance(SpectralMonitor, ABC):
    r"""A :class:`SpectralMonitor` that also gives every layer l a hyperparameter :math:`h_l(t) = h(t) \, m(\alpha_l)`.

    :math:`h(t)` is what the optimizer's group has, from whatever scheduler; it stays in the group, and the multiplier
    is applied while the optimizer steps only. Bias and norm parameters follow the layer they belong to
    (:func:`lightning_farms.analysis.parameter_layers`), unless ``control`` says otherwise; what belongs to no analysed
    layer, and a layer that was skipped or is not balanced, keeps the base value. Multipliers are computed over the
    layers whose weight an optimizer trains. Weights that lie in one parameter (queries, keys and values; the gates of
    a recurrent layer) have one multiplier, by the mean of their alphas, and are one layer (``attn.in_proj_weight``)
    here. Where optimizers or parameters are replaced or added during training, that is noticed at the next epoch or
    analysis. Options that change between a run and its resumption act from the next analysis on.

    Args:
        alpha_map: from alphas to multipliers.
        control: what steadies and bounds the multipliers, and which layers have one.

    The other arguments are those of :class:`SpectralMonitor`.

    Attributes:
        multipliers: {layer: multiplier} that the next update uses; empty before the first analysis.

    Raises:
        TypeError: ``alpha_map`` or ``control`` is no such thing.
        MisconfigurationException: a second callback adjusts the same hyperparameter, or the optimizer takes no
            layer-wise values (LBFGS, DeepSpeed's).
    """

    _precedence = 0
    _adjusts: ClassVar[Hyperparameter]

    def __init__(
        self,
        alpha_map: AlphaMap,
        analysis: SpectralMethod = FARMS(),
        every_n_epochs: int = 1,
        *,
        every_n_steps: int | None = None,
        start_epoch: int = 0,
        control: Control = Control(),
        selection: Selection = Selection(),
        diagnostics: Diagnostics = Diagnostics(),
        workspace: int = WORKSPACE,
        overlap: bool = False,
        figures_every_n_epochs: int = 10,
        esd_layers: int = 4,
        summary: bool = True,
    ) -> None:
        if not isinstance(alpha_map, AlphaMap):
            raise TypeError(f"Expected argument `alpha_map` to be LinearMap(...) or the like, but got {alpha_map!r}.")
        if not isinstance(control, Control):
            raise TypeError(f"Expected argument `control` to be Control(...), but got {control!r}.")
        self.alpha_map = alpha_map
        self.control = control
        super().__init__(
            analysis,
            every_n_epochs,
            every_n_steps=every_n_steps,
            start_epoch=start_epoch,
            selection=selection,
            diagnostics=diagnostics,
            workspace=workspace,
            overlap=overlap,
            figures_every_n_epochs=figures_every_n_epochs,
            esd_layers=esd_layers,
            summary=summary,
        )

    def _reset(self) -> None:
        super()._reset()
        self.multipliers: dict[str, float] = {}
        self._ramp = MultiplierRamp({}, {}, 0, 0)
        self._averages: dict[str, float] = {}  # of alpha, over the analyses
        self._scalings: list[LayerwiseScaling] = []
        self._holders: dict[str, tuple[Tensor, ...]] = {}  # parameters that hold each of the report's weights
        self._layers: dict[str, str] = {}  # layer that each of the report's weights belongs to
        self._unbalanced: set[str] = set()  # the report's weights that `control` leaves out
        self._hooked: list[tuple[int, bool]] = []  # what the hooks were made for: optimizers and parameters

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state, the averages of alpha, and the multipliers with the way they are on."""
        return {**super().state_dict(), "averages": dict(self._averages), "ramp": self._ramp._asdict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the values; they take effect when the fit starts."""
        super().load_state_dict(state_dict)
        if state_dict["version"] == 1:
            self._ramp = MultiplierRamp({}, dict(state_dict["multipliers"]), 0, 0)
            return
        self._averages = dict(state_dict["averages"])
        self._ramp = MultiplierRamp(**state_dict["ramp"])

    # ---- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second callback that adjusts the same, whose multipliers would compound with this one's."""
        super().setup(trainer, pl_module, stage)
        for other in monitors(trainer) if stage == "fit" else ():
            both = self._adjusted() & other._adjusted() if isinstance(other, LayerwiseBalance) else set()
            if both and other is not self:
                raise MisconfigurationException(
                    f"{type(self).__name__} and {type(other).__name__} both adjust the {both.pop().name} and would "
                    "compound. Keep one (SpectralMonitor(analysis=...) logs a second analysis without adjusting), or "
                    "leave out `compensate_weight_decay` if it is that."
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the optimizers: they exist now."""
        super().on_fit_start(trainer, pl_module)
        self._hook(trainer, pl_module)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take notice of new optimizers and parameters, and make up for a skipped analysis."""
        self._hook_anew(trainer, pl_module)
        super().on_train_epoch_start(trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put restored multipliers in force, then analyse if that is due."""
        self._apply(trainer)
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Take the multipliers a step further on their way, or analyse if that is due."""
        if self.multipliers != self._ramp.target:
            self._apply(trainer)
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers as they were: Lightning calls no teardown after an exception or an interrupt."""
        super().on_exception(trainer, pl_module, exception)
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the closing table, and leave the optimizers as they were."""
        super().teardown(trainer, pl_module, stage)
        self._detach()

    # ---- for subclasses ----------------------------------------------------------------------------------------------

    def _scalings_of(self, optimizer: Any, layer_of: Mapping[Tensor, str]) -> list[LayerwiseScaling]:  # noqa: ANN401
        return [LayerwiseScaling(optimizer, layer_of, key=self._adjusts.key)]

    def _adjusted(self) -> set[Hyperparameter]:
        """All hyperparameters that the callback touches."""
        return {self._adjusts}

    def _scaling_multipliers(self, scaling: LayerwiseScaling) -> dict[str, float]:
        """What a scaling of the optimizer multiplies by."""
        return self.multipliers

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _hook(self, trainer: Trainer, pl_module: LightningModule) -> None:
        former = {scaling.optimizer: scaling for scaling in self._scalings}
        self._detach()
        control = self.control
        layer_of, self._holders, selected = structure(
            trainer, pl_module, self.selection, norms=control.norms, biases=control.biases
        )
        self._layers = {name: layer_of[holders[0]] for name, holders in self._holders.items() if holders}
        with whole_shapes(trainer):
            self._unbalanced = self._left_out(pl_module, selected)
        try:
            self._scalings = [scaling for o in trainer.optimizers for scaling in self._scalings_of(o, layer_of)]
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(f"{type(self).__name__}: {error}") from error
        for scaling in self._scalings:
            scaling.attach()
            if scaling.optimizer in former:
                scaling.remember(former[scaling.optimizer])
        self._hooked = _identities(trainer)

    def _hook_anew(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook again where optimizers or parameters have been replaced, added, or made of lazy ones."""
        if self._hooked == _identities(trainer):
            return
        try:
            self._hook(trainer, pl_module)
            self._apply(trainer)
        except (ValueError, RuntimeError, MisconfigurationException) as error:
            self._detach()
            self._warned_of.add("use")  # which would be said again, of no layer at all
            self._warn_once("hooks", f"{error} All layers have the base {self._adjusts.name} from now on.")

    def _before_analysis(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._hook_anew(trainer, pl_module)

    def _left_out(self, pl_module: LightningModule, selected: Iterable[str]) -> set[str]:
        """Weights that ``control`` refuses."""
        control = self.control
        layers = replace(control.layers, embeddings=True, low_rank_products=self.selection.low_rank_products)
        refused = {weight.name for weight in layer_weights(pl_module, layers, values=False) if weight.reason}
        ordered = list(dict.fromkeys(self._layers[name] for name in selected if name in self._layers))
        ends = {*(() if control.first_layer else ordered[:1]), *(() if control.last_layer else ordered[-1:])}
        return refused | {name for name, layer in self._layers.items() if layer in ends}

    def _detach(self) -> None:
        for scaling in self._scalings:
            scaling.detach()
        self._scalings, self._holders = [], {}

    def _on_report(self, trainer: Trainer, report: SpectralReport) -> Mapping[str, Mapping[str, float]]:
        alphas = self._smoothed(self._alphas(report))
        target, step = self._target(alphas), trainer.global_step
        self._ramp = MultiplierRamp(self._ramp.at(step - 1), target, step, self.control.ramp_steps)
        self._apply(trainer)
        for what, message in warnings_of_control(alphas, target, self._adjusts.name).items():
            self._warn_once(what, f"{type(self).__name__}: {message}")
        return {self._adjusts.quantity: dict(ChainMap(*reversed(self._values().values())))}

    def _target(self, alphas: Mapping[str, float]) -> dict[str, float]:
        """Multipliers of these alphas; where a map of the user's fails in mid-training, those that there are."""
        try:
            multipliers = self.control.multipliers(vector(alphas.values()), self.alpha_map)
        except Exception as error:
            if not self._ramp.target:
                raise
            self._warn_once("map", f"{type(self).__name__}: the multipliers stay as they were. {error}")
            return {layer: self._ramp.target.get(layer, 1.0) for layer in alphas}
        return dict(zip(alphas, multipliers.tolist(), strict=True))

    def _alphas(self, report: SpectralReport) -> dict[str, float]:
        """Alpha of each layer that an optimizer trains, the mean of its weights'; NaN where it is not balanced."""
        trained = set().union(*(scaling.trained_parameters() for scaling in self._scalings))
        members: dict[str, list[float]] = {}
        for row in report:
            if row.name in self._layers and not trained.isdisjoint(self._holders.get(row.name, ())):
                alpha = math.nan if row.name in self._unbalanced else row.alpha
                members.setdefault(self._layers[row.name], []).append(alpha)
        return {layer: vector(of_weights).nanmean().item() for layer, of_weights in members.items()}

    def _smoothed(self, alphas: Mapping[str, float]) -> dict[str, float]:
        """Moving averages over the analyses; a layer that has no alpha now has none."""
        before = vector(self._averages.get(layer, math.nan) for layer in alphas)
        averages = moving_average(before, vector(alphas.values()), self.control.ema_decay)
        smoothed = dict(zip(alphas, averages.tolist(), strict=True))
        self._averages.update({layer: alpha for layer, alpha in smoothed.items() if math.isfinite(alpha)})
        return smoothed

    def _apply(self, trainer: Trainer) -> None:
        """Put the multipliers of the next update in force."""
        self.multipliers = self._ramp.at(trainer.global_step)
        for scaling in self._scalings:
            known = scaling.multipliers
            scaling.multipliers = {k: m for k, m in self._scaling_multipliers(scaling).items() if k in known}

    def _values(self) -> dict[str, dict[str, float]]:
        """{"lr-<Optimizer>": {layer: rate}} of layers with an analysed weight, numbered like LearningRateMonitor's."""
        names: Counter[str] = Counter()
        values: dict[str, dict[str, float]] = {}
        for scaling in self._scalings:
            if scaling.key == self._adjusts.key:
                name = f"{self._adjusts.log_prefix}-{type(scaling.optimizer).__name__}"
                names[name] += 1
                values[name if names[name] == 1 else f"{name}-{names[name] - 1}"] = scaling.effective()
        return values

    def _factors(self) -> dict[str, dict[str, float]]:
        """The factor of each of the report's weights, also where several have one."""
        layers = self._layers.items()
        return {self._adjusts.factor: {name: self.multipliers[of] for name, of in layers if of in self.multipliers}}


def _identities(trainer: Trainer) -> list[tuple[int, bool]]:
    """What the optimizers hold; the model itself may show gathered weights in its parameters' place (FSDP2)."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    parameters = [(id(parameter), is_lazy(parameter)) for group in groups for parameter in group["params"]]
    return [(id(optimizer), False) for optimizer in trainer.optimizers] + parameters
