"""From reports to the multipliers that are in force on optimizers."""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_farms.analysis.report import SpectralReport
from lightning_farms.balancing._ramp import MultiplierRamp
from lightning_farms.balancing.alpha_map import AlphaMap
from lightning_farms.balancing.control import Control
from lightning_farms.balancing.hyperparameter import WEIGHT_DECAY, Hyperparameter
from lightning_farms.balancing.structure import Structure
from lightning_farms.balancing.warnings import warnings_of_control
from lightning_farms.functional.smoothing import moving_average
from lightning_farms.functional.vectors import vector
from lightning_farms.optim.scaling import LayerwiseScaling
from lightning_farms.optim.support import check_decoupled_weight_decay

_PRODUCT = "low-rank product"


class Balancer:
    r"""Gives every layer l of a model a hyperparameter :math:`h_l(t) = h(t) \, m(\alpha_l)`; it knows no Trainer.

    :math:`h(t)` is what the optimizer's group has; it stays there, and the multiplier is applied while the optimizer
    steps only (:class:`lightning_farms.optim.LayerwiseScaling`). Multipliers are computed over the layers whose weight
    an optimizer trains. Weights that lie in one parameter have one multiplier, by the mean of their alphas.
    A layer whose alpha is not finite has the multiplier 1 and moves no other layer's.

    Args:
        alpha_map: from alphas to multipliers.
        control: what steadies and bounds the multipliers, and which layers have one.
        adjusts: which hyperparameter.
        warn: takes (kind of warning, message).

    Attributes:
        multipliers: {layer: multiplier} that the next update uses; empty before the first report.
        scalings: one for each optimizer and hyperparameter, while there are hooks.
    """

    def __init__(
        self, alpha_map: AlphaMap, control: Control, adjusts: Hyperparameter, warn: Callable[[str, str], None]
    ) -> None:
        self.alpha_map, self.control, self.adjusts = alpha_map, control, adjusts
        self.multipliers: dict[str, float] = {}
        self.scalings: list[LayerwiseScaling] = []
        self._warn = warn
        self._ramp = MultiplierRamp({}, {}, 0, 0)
        self._averages: dict[str, float] = {}  # of alpha, over the reports
        self._structure = Structure({}, {}, set())
        self._layers: dict[str, str] = {}  # layer that each of the report's weights belongs to
        self._hooked: list[tuple[int, bool]] = []  # what the hooks were made for: optimizers and parameters

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The averages of alpha, and the multipliers with the way they are on, in plain types."""
        return {"averages": dict(self._averages), "ramp": self._ramp._asdict()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Store the values, which :meth:`apply` puts in force; a state of version 1 held ``multipliers`` alone."""
        if "ramp" in state_dict:
            self._averages = dict(state_dict["averages"])
            self._ramp = MultiplierRamp(**state_dict["ramp"])
        else:
            self._ramp = MultiplierRamp({}, dict(state_dict["multipliers"]), 0, 0)

    # ---- hooks on the optimizers -------------------------------------------------------------------------------------

    def hook(self, structure: Structure, optimizers: Sequence[Optimizer]) -> None:
        """Hook the optimizers, in place of those hooked before.

        Args:
            structure: of the model.
            optimizers: all of them.

        Raises:
            TypeError: an optimizer takes no layer-wise values.
            ValueError: its groups lack the hyperparameter.
        """
        former = {scaling.optimizer: scaling for scaling in self.scalings}
        self.detach()
        self._structure, self._layers = structure, structure.layers
        self.scalings = [scaling for optimizer in optimizers for scaling in self._scalings_of(optimizer)]
        for scaling in self.scalings:
            scaling.attach()
            if scaling.optimizer in former:
                scaling.remember(former[scaling.optimizer])
        self._hooked = _identities(optimizers)

    def fits(self, optimizers: Sequence[Optimizer]) -> bool:
        """Tell whether the hooks are those of these optimizers and of the parameters that they hold now."""
        return self._hooked == _identities(optimizers)

    def detach(self) -> None:
        """Leave the optimizers as they were."""
        for scaling in self.scalings:
            scaling.detach()
        self.scalings, self._structure = [], self._structure._replace(holders={})

    def adjusted(self) -> set[Hyperparameter]:
        """All hyperparameters that are touched."""
        return {self.adjusts, WEIGHT_DECAY} if self.control.compensate_weight_decay else {self.adjusts}

    def _scalings_of(self, optimizer: Optimizer) -> list[LayerwiseScaling]:
        if self.control.compensate_weight_decay:
            check_decoupled_weight_decay(optimizer)
        keys = [self.adjusts.key, *(other.key for other in self.adjusted() - {self.adjusts})]
        return [LayerwiseScaling(optimizer, self._structure.layer_of, key=key) for key in keys]

    # ---- from a report to multipliers --------------------------------------------------------------------------------

    def receive(self, report: SpectralReport, step: int) -> dict[str, dict[str, float]]:
        """Set out for the multipliers that a report asks for.

        Args:
            report: of the model's weights.
            step: optimizer steps taken so far.

        Returns:
            {quantity: {layer: value that the next update uses}}, for the history.

        Raises:
            ValueError: the map fails, and there are no multipliers of before.
        """
        alphas = self._smoothed(self._alphas(report))
        target = self._target(alphas)
        self._ramp = MultiplierRamp(self._ramp.at(step - 1), target, step, self.control.ramp_steps)
        self.apply(step)
        if step > 0 or not self._starts_at_zero(report):
            for what, message in warnings_of_control(alphas, target, self.adjusts.name).items():
                self._warn(what, message)
        return {self.adjusts.quantity: dict(ChainMap(*reversed(self.values().values())))}

    def apply(self, step: int) -> None:
        """Put the multipliers of the update that follows ``step`` ones in force."""
        self.multipliers = self._ramp.at(step)
        for scaling in self.scalings:
            known = scaling.multipliers
            scaling.multipliers = {k: m for k, m in self._of_scaling(scaling).items() if k in known}

    def on_its_way(self) -> bool:
        """Tell whether the multipliers in force are not yet those of the last report."""
        return self.multipliers != self._ramp.target

    def _of_scaling(self, scaling: LayerwiseScaling) -> dict[str, float]:
        if scaling.key == self.adjusts.key:
            return self.multipliers
        return {layer: 1 / multiplier for layer, multiplier in self.multipliers.items()}  # compensates

    def _target(self, alphas: Mapping[str, float]) -> dict[str, float]:
        """Multipliers of these alphas; where a map of the user's fails in mid-training, those that there are."""
        try:
            multipliers = self.control.multipliers(vector(alphas.values()), self.alpha_map)
        except Exception as error:
            if not self._ramp.target:
                raise
            self._warn("map", f"the multipliers stay as they were. {error}")
            return {layer: self._ramp.target.get(layer, 1.0) for layer in alphas}
        return dict(zip(alphas, multipliers.tolist(), strict=True))

    def _alphas(self, report: SpectralReport) -> dict[str, float]:
        """Alpha of each layer that an optimizer trains, the mean of its weights'; NaN where it is not balanced."""
        trained: set[Tensor] = set().union(*(scaling.trained_parameters() for scaling in self.scalings))
        members: dict[str, list[float]] = {}
        for row in report:
            if row.name in self._layers and not trained.isdisjoint(self._structure.holders.get(row.name, ())):
                alpha = math.nan if row.name in self._structure.unbalanced else row.alpha
                members.setdefault(self._layers[row.name], []).append(alpha)
        return {layer: vector(of_weights).nanmean().item() for layer, of_weights in members.items()}

    def _starts_at_zero(self, report: SpectralReport) -> bool:
        """Whether a low-rank product is zero, as that of LoRA's factors is at first: alphas come with the updates."""
        return any(row.name in self._layers and row.kind == _PRODUCT and row.spectral_norm == 0 for row in report)

    def _smoothed(self, alphas: Mapping[str, float]) -> dict[str, float]:
        """Moving averages over the reports; a layer that has no alpha now has none."""
        before = vector(self._averages.get(layer, math.nan) for layer in alphas)
        averages = moving_average(before, vector(alphas.values()), self.control.ema_decay)
        smoothed = dict(zip(alphas, averages.tolist(), strict=True))
        self._averages.update({layer: alpha for layer, alpha in smoothed.items() if math.isfinite(alpha)})
        return smoothed

    # ---- what there is to show ---------------------------------------------------------------------------------------

    def values(self) -> dict[str, dict[str, float]]:
        """{"layer_lr/<Optimizer>": {layer: rate}} of layers with an analysed weight; ``-1`` for a second one, ..."""
        names: Counter[str] = Counter()
        values: dict[str, dict[str, float]] = {}
        for scaling in self.scalings:
            if scaling.key == self.adjusts.key:
                name = f"{self.adjusts.log_prefix}/{type(scaling.optimizer).__name__}"
                names[name] += 1
                values[name if names[name] == 1 else f"{name}-{names[name] - 1}"] = scaling.effective()
        return values

    def factors(self) -> dict[str, float]:
        """{weight of the report: its layer's multiplier}."""
        return {name: self.multipliers[layer] for name, layer in self._layers.items() if layer in self.multipliers}


def _identities(optimizers: Sequence[Optimizer]) -> list[tuple[int, bool]]:
    """What the optimizers hold; the model itself may show gathered weights in its parameters' place (FSDP2)."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = [(id(parameter), is_lazy(parameter)) for group in groups for parameter in group["params"]]
    return [(id(optimizer), False) for optimizer in optimizers] + parameters
