"""What all callbacks that adjust a hyperparameter of the optimizer layer by layer have in common."""

from __future__ import annotations

import math
from abc import ABC
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, NamedTuple

import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor

from lightning_farms.analysis import (
    Diagnostics,
    Selection,
    SpectralMethod,
    SpectralReport,
    layer_weights,
)
from lightning_farms.callbacks.alpha_map import AlphaMap
from lightning_farms.callbacks.control import Control
from lightning_farms.callbacks.spectral_monitor import SpectralMonitor, _monitors
from lightning_farms.callbacks.strategies import structure, whole_shapes
from lightning_farms.functional.control import moving_average, ramp, squeezing_outlier
from lightning_farms.optim import LayerwiseScaling


class _Ramp(NamedTuple):
    """Multipliers on their way: from those in force at an analysis, to those that it asked for, and at which step."""

    start: dict[str, float]
    target: dict[str, float]
    step: int

    def at(self, step: int, steps: int) -> dict[str, float]:
        """Multipliers of the update that follows ``step`` ones."""
        start = _vector(self.start.get(layer, 1.0) for layer in self.target)
        values = ramp(start, _vector(self.target.values()), max(0, step + 1 - self.step), steps)
        return dict(zip(self.target, values.tolist(), strict=True))


class LayerwiseBalance(SpectralMonitor, ABC):
    r"""A :class:`SpectralMonitor` that also gives every layer l a hyperparameter :math:`h_l(t) = h(t) \, m(\alpha_l)`.

    :math:`h(t)` is what the optimizer's group has, from whatever scheduler; it stays in the group, and the multiplier
    is applied while the optimizer steps only. Bias and norm parameters follow the layer they belong to
    (:func:`lightning_farms.analysis.parameter_layers`), unless ``control`` says otherwise; what belongs to no analysed
    layer, and a layer that was skipped or is not balanced, keeps the base value. Multipliers are computed over the
    layers whose weight an optimizer trains. Weights that lie in one parameter (queries, keys and values; the gates of
    a recurrent layer) have one multiplier, by the mean of their alphas, and are one layer (``attn.in_proj_weight``)
    here.

    Args:
        alpha_map: from alphas to multipliers.
        control: what steadies and bounds the multipliers, and which layers have one.

    The other arguments are those of :class:`SpectralMonitor`.

    Attributes:
        multipliers: {layer: multiplier} that the next update uses.

    Raises:
        TypeError: ``alpha_map`` or ``control`` is no such thing.
        MisconfigurationException: a second callback adjusts the same hyperparameter, or the optimizer takes no
            layer-wise values (LBFGS, DeepSpeed's).
    """

    _precedence = 0
    _key: ClassVar[str]  # the hyperparameter, in the optimizer's groups
    _quantity: ClassVar[str]  # in the history and the heat maps
    _log_prefix: ClassVar[str]
    _noun: ClassVar[str]

    def __init__(
        self,
        alpha_map: AlphaMap,
        analysis: SpectralMethod,
        every_n_epochs: int,
        *,
        every_n_steps: int | None,
        start_epoch: int,
        control: Control,
        selection: Selection,
        diagnostics: Diagnostics,
        workspace: int,
        overlap: bool,
        figures_every_n_epochs: int,
        esd_layers: int,
        summary: bool,
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
        self._ramp = _Ramp({}, {}, 0)
        self._averages: dict[str, float] = {}  # of alpha, over the analyses
        self._scalings: list[LayerwiseScaling] = []
        self._holders: dict[str, tuple[Tensor, ...]] = {}  # parameters that hold each of the report's weights
        self._layers: dict[str, str] = {}  # layer that each of the report's weights belongs to
        self._unbalanced: set[str] = set()  # the report's weights that `control.layers` leaves out
        self._warned_of_use: set[str] = set()

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """The monitor's state, the averages of alpha, and the multipliers with the way they are on."""
        return {**super().state_dict(), "averages": dict(self._averages), "ramp": self._ramp._asdict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the values; they take effect when the fit starts."""
        super().load_state_dict(state_dict)
        if state_dict["version"] == 1:
            self._ramp = _Ramp({}, dict(state_dict["multipliers"]), 0)
            return
        self._averages = dict(state_dict["averages"])
        self._ramp = _Ramp(**state_dict["ramp"])

    # ---- hooks -------------------------------------------------------------------------------------------------------

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse a second callback that adjusts the same, whose multipliers would compound with this one's."""
        super().setup(trainer, pl_module, stage)
        for other in _monitors(trainer) if stage == "fit" else ():
            both = self._adjusted() & other._adjusted() if isinstance(other, LayerwiseBalance) else set()
            if both and other is not self:
                raise MisconfigurationException(
                    f"{type(self).__name__} and {type(other).__name__} both adjust the {both.pop()} and would compound."
                    " Keep one; SpectralMonitor(analysis=...) logs a second analysis without adjusting."
                )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Hook the optimizers: they exist now."""
        super().on_fit_start(trainer, pl_module)
        self._detach()
        layer_of, self._holders = structure(
            trainer, pl_module, self.selection, norms=self.control.norms, biases=self.control.biases
        )
        self._layers = {name: layer_of[holders[0]] for name, holders in self._holders.items() if holders}
        with whole_shapes(trainer):
            self._unbalanced = self._left_out(pl_module)
        try:
            self._scalings = [scaling for o in trainer.optimizers for scaling in self._scalings_of(o, layer_of)]
        except (TypeError, ValueError) as error:
            raise MisconfigurationException(f"{type(self).__name__}: {error}") from error
        for scaling in self._scalings:
            scaling.attach()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put restored multipliers in force, then analyse if that is due."""
        self._apply(trainer)
        super().on_train_start(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: STEP_OUTPUT, batch: object, batch_idx: int
    ) -> None:
        """Take the multipliers a step further on their way, or analyse if that is due."""
        if trainer.global_step <= self._ramp.step + self.control.ramp_steps:
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
        return [LayerwiseScaling(optimizer, layer_of, key=self._key)]

    def _adjusted(self) -> set[str]:
        """Names of the hyperparameters that the callback adjusts."""
        return {self._noun}

    def _scaling_multipliers(self, scaling: LayerwiseScaling) -> dict[str, float]:
        """What a scaling of the optimizer multiplies by."""
        return self.multipliers

    # ---- stages ------------------------------------------------------------------------------------------------------

    def _left_out(self, pl_module: LightningModule) -> set[str]:
        """Weights that ``control.layers`` refuses, and no other reason does."""
        layers = replace(self.control.layers, embeddings=True, low_rank_products=self.selection.low_rank_products)
        return {weight.name for weight in layer_weights(pl_module, layers, values=False) if weight.reason}

    def _detach(self) -> None:
        for scaling in self._scalings:
            scaling.detach()
        self._scalings, self._holders, self._layers = [], {}, {}

    def _on_report(self, trainer: Trainer, report: SpectralReport) -> Mapping[str, Mapping[str, float]]:
        alphas = self._alphas(report)
        averages = moving_average(
            _vector(self._averages.get(layer, math.nan) for layer in alphas),
            _vector(alphas.values()),
            self.control.ema,
        )
        by_layer = dict(zip(alphas, averages.tolist(), strict=True))
        self._averages.update({layer: alpha for layer, alpha in by_layer.items() if math.isfinite(alpha)})
        multipliers = self.control.multipliers(averages, self.alpha_map)
        target = dict(zip(alphas, multipliers.tolist(), strict=True))
        step = trainer.global_step
        self._ramp = _Ramp(self._ramp.at(step - 1, self.control.ramp_steps), target, step)
        self._apply(trainer)
        self._warn_of_no_use({layer: alpha for layer, alpha in by_layer.items() if math.isfinite(alpha)}, target)
        values: dict[str, float] = {}
        for of_optimizer in self._effective().values():
            values.update(of_optimizer)
        return {self._quantity: values}

    def _alphas(self, report: SpectralReport) -> dict[str, float]:
        """Alpha of each layer that an optimizer trains, the mean of its weights'; NaN where it is not balanced."""
        trained = set().union(*(scaling.trained_parameters() for scaling in self._scalings))
        analysed = [row.name for row in report if row.status == "ok"]
        ends = {
            *(() if self.control.first_layer else analysed[:1]),
            *(() if self.control.last_layer else analysed[-1:]),
        }
        members: dict[str, list[float]] = {}
        for row in report:
            if row.name in self._layers and not trained.isdisjoint(self._holders[row.name]):
                balanced = row.name not in self._unbalanced and row.name not in ends
                members.setdefault(self._layers[row.name], []).append(row.alpha if balanced else math.nan)
        return {layer: _vector(alphas).nanmean().item() for layer, alphas in members.items()}

    def _apply(self, trainer: Trainer) -> None:
        """Put the multipliers of the next update in force."""
        self.multipliers = self._ramp.at(trainer.global_step, self.control.ramp_steps)
        for scaling in self._scalings:
            known = scaling.multipliers
            scaling.multipliers = {k: m for k, m in self._scaling_multipliers(scaling).items() if k in known}

    def _rates(self, trainer: Trainer) -> dict[str, float]:
        return {f"{name}/{layer}": rate for name, rates in self._effective().items() for layer, rate in rates.items()}

    def _effective(self) -> dict[str, dict[str, float]]:
        """{"lr-<Optimizer>": {layer: rate}} of layers with an analysed weight, numbered like LearningRateMonitor's."""
        names: Counter[str] = Counter()
        values: dict[str, dict[str, float]] = {}
        for scaling in self._scalings:
            if scaling.key != self._key:
                continue
            name = f"{self._log_prefix}-{type(scaling.optimizer).__name__}"
            names[name] += 1
            values[name if names[name] == 1 else f"{name}-{names[name] - 1}"] = scaling.effective()
        return values

    def _current_multipliers(self) -> dict[str, float] | None:
        """The factor of each of the report's weights, also where several have one rate."""
        return {name: self.multipliers[layer] for name, layer in self._layers.items() if layer in self.multipliers}

    # ---- warnings ----------------------------------------------------------------------------------------------------

    def _warn_of_no_use(self, alphas: Mapping[str, float], multipliers: Mapping[str, float]) -> None:
        balanced = _vector(multipliers[layer] for layer in alphas)
        if len(alphas) < 2 or not bool((balanced != balanced[0]).any()):
            self._warn_once("use", f"all layers have the same {self._noun}: {_why_equal(list(alphas.values()))}")
            return
        index = squeezing_outlier(balanced)
        if index is not None:
            layer = list(alphas)[index]
            others = [alpha for name, alpha in alphas.items() if name != layer]
            quantile = math.ceil(100 / (len(alphas) - 1)) / 100
            remedy = f"clip it with control=Control(clip_quantile={quantile})" if quantile < 0.5 else "use StepMap()"
            self._warn_once(
                "outlier",
                f"layer {layer!r} has alpha {alphas[layer]:.2f}, the others {min(others):.2f} to {max(others):.2f}, so "
                f"that these have nearly one {self._noun}. If that is not meant, {remedy}, or leave the layer out with "
                f'control=Control(layers=Selection(exclude=("{layer}",))).',
            )

    def _warn_once(self, what: str, message: str) -> None:
        if what not in self._warned_of_use:
            self._warned_of_use.add(what)
            rank_zero_warn(f"{type(self).__name__}: {message}")


def _why_equal(alphas: list[float]) -> str:
    if not alphas:
        return (
            "none of the layers that the optimizer trains and the selection leaves has an alpha (`callback.report` "
            "says why for each). Use SpectralMonitor, or select other layers."
        )
    if len(alphas) == 1:
        return "only one is balanced. Select more layers, or use SpectralMonitor."
    return (
        f"their alphas lie between {min(alphas):.4f} and {max(alphas):.4f}, and the map makes no difference of that. "
        "Look for weights that are copies of each other, or for ratios, strengths or clipping that leave no range."
    )


def _vector(values: Iterable[float]) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)
