"""Settings of how a layer-wise hyperparameter follows the alphas: which layers, how smoothly, how far."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal, get_args

import torch
from torch import Tensor

from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.selection import Selection
from lightning_farms.balancing.alpha_map import AlphaMap
from lightning_farms.functional.layerwise import normalize_multipliers
from lightning_farms.functional.smoothing import clip_to_quantiles

Signal = Literal["alpha", "relative_alpha", "change"]


@dataclass(frozen=True)
class Control:
    """Settings between the alphas and the optimizer: smoothing and bounds of multipliers, and which layers have one.

    Layers that are left out here are analysed and logged, but keep the base value and do not influence other layers.

    Args:
        ema_decay: weight of the past in an exponential moving average of each layer's alpha (or other signal) over
            analyses, in [0, 1); 0 for none.
        clip_quantile: alphas beyond this quantile and its opposite are set to these before the map, in [0, 0.5); 0
            for none. A value of at least 1 / (L - 1) moves one outlier of L layers all the way to its neighbour.
        min_multiplier: lower bound of the multipliers, in [0, 1].
        max_multiplier: upper bound of the multipliers, at least 1.
        ramp_steps: number of optimizer steps (of all optimizers) over which the multipliers go linearly from those in
            force at an analysis to the new ones; 0 for at once.
        layers: which weights take part, so that their layers have a multiplier: ``include``, ``exclude`` (patterns),
            ``kinds``, ``min_size`` (number of eigenvalues of a matrix), ``max_size``. Whether embeddings and low-rank
            products are analysed at all is decided by ``selection``.
        first_layer: whether the first layer of the model, of those that the analysis selects, is balanced.
        last_layer: whether the last layer of the model, of those that the analysis selects, is balanced.
        norms: whether norms (modules without a matrix) follow the layer to which they belong.
        biases: whether biases follow the layer to which they belong.
        compensate_weight_decay: decoupled weight decay shrinks a weight by rate times decay at each step, and so grows
            and falls with a layer's rate. With this, the decay of the layer is divided by the multiplier of its rate,
            and the weights shrink as with one rate for all layers. For callbacks that adjust learning rates.
        signal: quantity of each layer that is passed to the map: ``"alpha"``, as published; ``"relative_alpha"``, its
            alpha divided by that of the same entries shuffled, which removes the influence of the entries' distribution
            and of small windows (the twin is analysed as with ``Diagnostics(twin=True)``); ``"change"``, its alpha
            divided by that of its first analysis, so that all multipliers are 1 until alphas have moved. The last two
            are near 1, so that their differences are small against the ``tau`` of a sigmoid.
        normalize: after the map, one factor for all balanced layers makes the mean of their multipliers 1, weighted by
            their numbers of trained parameters: ``"mean"`` the arithmetic, ``"geometric"`` the geometric mean
            (:func:`lightning_farms.functional.normalize_multipliers`). It separates the distribution over layers from
            the overall size: TB_Sigmoid's multipliers often have a mean of 1.5 and more. None, as published: no factor.

    Raises:
        TypeError: an argument is of the wrong kind.
        ValueError: an argument is out of range; when the fit starts: a pattern of ``layers`` matches no layer.

    Example:
        >>> control = Control(ema_decay=0.5, ramp_steps=100, max_multiplier=2.0, first_layer=False, last_layer=False)
    """

    ema_decay: float = 0.0
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
    signal: Signal = "alpha"
    normalize: Literal["mean", "geometric"] | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.layers, Selection):
            raise TypeError(f"Expected argument `layers` to be Selection(...), but got {self.layers!r}.")
        for name, choices in (("signal", get_args(Signal)), ("normalize", (None, "mean", "geometric"))):
            if getattr(self, name) not in choices:
                raise ValueError(f"Expected argument `{name}` to be one of {choices}, but got {getattr(self, name)!r}.")
        for name in ("first_layer", "last_layer", "norms", "biases", "compensate_weight_decay"):
            self._check_kind(name, bool, "True or False")
        self._check_kind("ramp_steps", int, "an integer")
        for name, least, most, rule in (
            ("ema_decay", 0, math.nextafter(1, 0), "in [0, 1)"),
            ("clip_quantile", 0, math.nextafter(0.5, 0), "in [0, 0.5)"),
            ("min_multiplier", 0, 1, "in [0, 1]"),
            ("max_multiplier", 1, math.inf, "at least 1"),
            ("ramp_steps", 0, math.inf, "0 or more"),
        ):
            self._check_kind(name, (int, float), "a number")
            if not least <= getattr(self, name) <= most:
                raise ValueError(f"Expected argument `{name}` to be {rule}, but got {getattr(self, name)}.")

    def _check_kind(self, name: str, kind: type | tuple[type, ...], description: str) -> None:
        if not isinstance(getattr(self, name), kind):
            raise TypeError(f"Expected argument `{name}` to be {description}, but got {getattr(self, name)!r}.")

    def completed(self, diagnostics: Diagnostics) -> Diagnostics:
        """The diagnostics, with the twin if ``signal="relative_alpha"`` needs it."""
        return replace(diagnostics, twin=True) if self.signal == "relative_alpha" else diagnostics

    def multipliers(self, alphas: Tensor, alpha_map: AlphaMap, weights: Tensor | None = None) -> Tensor:
        """Clip the finite alphas, map them, and normalise and clamp the result; other layers get 1.

        Args:
            alphas: (L,), alphas or another signal; not finite for layers that are left alone.
            alpha_map: the map.
            weights: (L,), numbers of parameters, for the mean of ``normalize``; None: all equal.

        Returns:
            (L,) multipliers, float64.

        Raises:
            ValueError: the map's result is not finite and positive, or not of the alphas' shape.
        """
        finite = alphas.isfinite()
        multipliers = torch.ones_like(alphas, dtype=torch.float64)
        if bool(finite.any()):
            mapped = alpha_map(clip_to_quantiles(alphas[finite], self.clip_quantile))
            if mapped.shape != alphas[finite].shape or not bool((mapped.isfinite() & (mapped > 0)).all()):
                raise ValueError(
                    f"Expected {alpha_map!r} to give one finite and positive multiplier for each of"
                    f" {int(finite.sum())} alphas, but got {mapped.tolist()}."
                )
            mapped = mapped.to(torch.float64)
            bounds = self.min_multiplier, self.max_multiplier
            if self.normalize is None:
                multipliers[finite] = mapped.clamp(*bounds)
            else:
                of_all = torch.ones_like(multipliers) if weights is None else weights
                multipliers[finite] = normalize_multipliers(mapped, of_all[finite], self.normalize, *bounds)
        return multipliers
