"""What all callbacks that adjust learning rates layer by layer have in common."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from torch import Tensor

from lightning_farms.analysis import SpectralReport, layer_weights, parameter_layers
from lightning_farms.callbacks.spectral_monitor import SpectralMonitor, _monitors
from lightning_farms.optim import LayerwiseScaling


class LayerwiseLearningRate(SpectralMonitor, ABC):
    r"""A :class:`SpectralMonitor` that also sets :math:`\eta_l(t) = \eta(t) \, m(\alpha_l)` for every layer l.

    :math:`\eta(t)` is the rate that the optimizer's group has, from whatever scheduler; it stays in the group, and the
    multiplier is applied while the optimizer steps only. Bias and norm parameters follow the layer they belong to
    (:func:`lightning_farms.analysis.parameter_layers`); what belongs to no analysed layer, and a layer that was
    skipped, keeps the base rate. Multipliers are computed over the layers whose weight an optimizer trains. Weights
    that lie in one parameter (queries, keys and values; the gates of a recurrent layer) have one rate, by the mean of
    their alphas, and are one layer (``attn.in_proj_weight``) here.

    Beside the monitor's keys:

    =============================  ====================================================================================
    ``lr-<Optimizer>/<layer>``     rate that the next update uses for the layer, after every epoch, to every logger
                                   (``lr-<Optimizer>-1/...`` for a second optimizer of the class, and so on)
    ``farms/learning_rate_map``    heat map of these rates, layers by epochs; ``..._labelled`` as a figure
    =============================  ====================================================================================

    Attributes:
        multipliers: {layer: multiplier} in force.

    Raises:
        MisconfigurationException: a second callback adjusts learning rates too, the strategy shards weights, or the
            optimizer takes no layer-wise rates (LBFGS, DeepSpeed's).
    """

    _refused_strategies = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
    _precedence = 0

    @abstractmethod
    def multipliers_from_alphas(self, alphas: Tensor) -> Tensor:
        """Map alphas (L,), NaN for skipped layers, to multipliers (L,)."""

    def _reset(self) -> None:
        super()._reset()
        self.multipliers: dict[str, float] = {}
        self._scalings: list[LayerwiseScaling] = []
        self._holders: dict[str, tuple[Tensor, ...]] = {}  # parameters that hold each of the report's weights
        self._layers: dict[str, str] = {}  # layer that each of the report's weights belongs to

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state and the multipliers in force."""
        return {**super().state_dict(), "multipliers": dict(self.multipliers)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the values; they take effect when the fit starts."""
        super().load_state_dict(state_dict)
        self.multipliers = dict(state_dict["multipliers"])

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second callback of this kind, whose multipliers would compound with this one's."""
        super().setup(trainer, pl_module, stage)
        others = [c for c in _monitors(trainer) if isinstance(c, LayerwiseLearningRate) and c is not self]
        if stage == "fit" and others:
            raise MisconfigurationException(
                f"{type(self).__name__} and {type(others[0]).__name__} both adjust learning rates and would compound. "
                "Keep one; SpectralMonitor(analysis=...) logs a second analysis without adjusting."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the optimizers: they exist now."""
        super().on_fit_start(trainer, pl_module)
        self._detach()
        layer_of = parameter_layers(pl_module, self.selection)
        weights = layer_weights(pl_module, self.selection, values=False)
        self._holders = {weight.name: weight.holders for weight in weights}
        self._layers = {name: layer_of[holders[0]] for name, holders in self._holders.items() if holders}
        try:
            self._scalings = [LayerwiseScaling(optimizer, layer_of) for optimizer in trainer.optimizers]
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(f"{type(self).__name__}: {error}") from error
        for scaling in self._scalings:
            scaling.attach()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put restored multipliers in force, then analyse if that is due."""
        self._apply(self.multipliers)
        super().on_train_start(trainer, pl_module)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers as they were: Lightning calls no teardown after an exception or an interrupt."""
        super().on_exception(trainer, pl_module, exception)
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Print the closing table, and leave the optimizers as they were."""
        super().teardown(trainer, pl_module, stage)
        self._detach()

    def _detach(self) -> None:
        for scaling in self._scalings:
            scaling.detach()
        self._scalings, self._holders, self._layers = [], {}, {}

    def _on_report(self, trainer: Trainer, report: SpectralReport) -> Mapping[str, Mapping[str, float]]:
        trained = set().union(*(scaling.trained_parameters() for scaling in self._scalings))
        alphas: dict[str, list[float]] = {}
        for name, alpha in report.alphas.items():
            if not trained.isdisjoint(self._holders.get(name, ())):
                alphas.setdefault(self._layers[name], []).append(alpha)
        means = [torch.tensor(of_layer, dtype=torch.float64).nanmean().item() for of_layer in alphas.values()]
        multipliers = self.multipliers_from_alphas(torch.tensor(means, dtype=torch.float64)).tolist()
        self._apply(dict(zip(alphas, multipliers, strict=True)))
        rates: dict[str, float] = {}
        for by_layer in self._effective().values():
            rates.update(by_layer)
        return {"learning_rate": rates}

    def _apply(self, multipliers: Mapping[str, float]) -> None:
        self.multipliers = dict(multipliers)
        for scaling in self._scalings:
            known = scaling.multipliers
            scaling.multipliers = {layer: m for layer, m in multipliers.items() if layer in known}

    def _rates(self, trainer: Trainer) -> dict[str, float]:
        return {f"{name}/{layer}": rate for name, rates in self._effective().items() for layer, rate in rates.items()}

    def _effective(self) -> dict[str, dict[str, float]]:
        """{"lr-<Optimizer>": {layer: rate}} of layers with an analysed weight, numbered like LearningRateMonitor's."""
        names: Counter[str] = Counter()
        rates: dict[str, dict[str, float]] = {}
        for scaling in self._scalings:
            name = f"lr-{type(scaling.optimizer).__name__}"
            names[name] += 1
            rates[name if names[name] == 1 else f"{name}-{names[name] - 1}"] = scaling.effective()
        return rates

    def _current_multipliers(self) -> dict[str, float] | None:
        """The factor of each of the report's weights, also where several have one rate."""
        return {name: self.multipliers[layer] for name, layer in self._layers.items() if layer in self.multipliers}
