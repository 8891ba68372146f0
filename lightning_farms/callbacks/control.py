"""How a layer-wise hyperparameter follows the alphas: which layers, how smoothly, how far."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from lightning_farms.analysis import Selection
from lightning_farms.callbacks.alpha_map import AlphaMap
from lightning_farms.functional.control import clip_to_quantiles


@dataclass(frozen=True)
class Control:
    """Between the alphas and the optimizer: what steadies and bounds the multipliers, and which layers have one.

    Layers that are left out here are analysed and logged; they keep the base value, and move no other layer.

    Args:
        ema: weight of the past in an exponential moving average of each layer's alpha over analyses, in [0, 1); 0 for
            none.
        clip_quantile: alphas beyond this quantile and its opposite are taken to these before the map, in [0, 0.5); 0
            for none. At least 1 / (L - 1) takes one outlier of L layers wholly to its neighbour.
        min_multiplier: no multiplier is smaller, in [0, 1].
        max_multiplier: no multiplier is larger, at least 1.
        ramp_steps: number of optimizer steps over which the multipliers go linearly from those in force at an analysis
            to the new ones; 0 for at once.
        layers: which layers are balanced: ``include``, ``exclude`` (patterns), ``kinds``, ``min_size`` (number of
            eigenvalues of a matrix), ``max_size``.
        first_layer: whether the first analysed layer of the model is balanced.
        last_layer: whether the last analysed layer of the model is balanced.
        norms: whether norms (modules without a matrix) follow the layer they belong to.
        biases: whether biases follow the layer they belong to.
        compensate_weight_decay: decoupled weight decay shrinks a weight by rate times decay at each step, and so grows
            and falls with a layer's rate. With this, the decay of the layer is divided by the multiplier of its rate,
            and the weights shrink as with one rate for all layers. For callbacks that adjust learning rates.

    Raises:
        TypeError: ``layers`` is not a :class:`~lightning_farms.analysis.Selection`.
        ValueError: an argument is out of range.

    Example:
        >>> control = Control(ema=0.5, ramp_steps=100, max_multiplier=2.0, first_layer=False, last_layer=False)
    """

    ema: float = 0.0
    clip_quantile: float = 0.0
    min_multiplier: float = 0.0
    max_multiplier: float = math.inf
    ramp_steps: int = 0
    layers: Selection = Selection()
    first_layer: bool = True
    last_layer: bool = True
    norms: bool = True
    biases: bool = True
    compensate_weight_decay: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Selection):
            raise TypeError(f"Expected argument `layers` to be Selection(...), but got {self.layers!r}.")
        for name, inside, rule in (
            ("ema", 0 <= self.ema < 1, "in [0, 1)"),
            ("clip_quantile", 0 <= self.clip_quantile < 0.5, "in [0, 0.5)"),
            ("min_multiplier", 0 <= self.min_multiplier <= 1, "in [0, 1]"),
            ("max_multiplier", self.max_multiplier >= 1, "at least 1"),
            ("ramp_steps", self.ramp_steps >= 0, "0 or more"),
        ):
            if not inside:
                raise ValueError(f"Expected argument `{name}` to be {rule}, but got {getattr(self, name)}.")

    def multipliers(self, alphas: Tensor, alpha_map: AlphaMap) -> Tensor:
        """Clip the alphas (L,), map them, and clamp the multipliers (L,) of those that are finite."""
        mapped = alpha_map(clip_to_quantiles(alphas, self.clip_quantile))
        return torch.where(alphas.isfinite(), mapped.clamp(self.min_multiplier, self.max_multiplier), mapped)
