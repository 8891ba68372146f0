"""Signals and trained parameters of the layers in a report, and the mean multiplier over these parameters."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from typing import NamedTuple

from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_farms.analysis.report import SpectralReport
from lightning_farms.balancing.structure import Structure
from lightning_farms.functional.vectors import vector
from lightning_farms.optim.scaling import LayerwiseScaling


class MeanMultiplier(NamedTuple):
    """Means of multipliers, weighted by numbers of trained parameters."""

    balanced: float  # over the balanced layers
    trained: float  # over all parameters that optimizers train

    def remark(self, factor: str) -> str:
        """The line for a closing table."""
        balanced = "" if math.isnan(self.balanced) else f"{self.balanced:.3f} over the balanced layers, "
        return f"mean {factor}, weighted by parameters: {balanced}{self.trained:.3f} over all that is trained"


def signals_of(report: SpectralReport, structure: Structure, signal: str) -> dict[str, float]:
    """{layer: mean of its weights' alphas (or other signals)}; NaN for layers that are not balanced."""
    members: dict[str, list[float]] = {}
    layers = structure.layers
    for row in report:
        if row.name in layers:
            value = row.relative_alpha if signal == "relative_alpha" else row.alpha
            value = math.nan if row.name in structure.unbalanced else value
            members.setdefault(layers[row.name], []).append(value)
    return {layer: vector(of_weights).nanmean().item() for layer, of_weights in members.items()}


def trained_sizes(structure: Structure, scalings: Iterable[LayerwiseScaling], known: Iterable[str]) -> dict[str, int]:
    """{layer: number of its trained parameters}, for the known layers of which a weight is trained."""
    trained: set[Tensor] = set().union(*(scaling.trained_parameters() for scaling in scalings))
    holders = structure.holders
    layers = {layer for name, layer in structure.layers.items() if not trained.isdisjoint(holders[name])}
    sizes = {layer: 0 for layer in known if layer in layers}
    for parameter, layer in structure.layer_of.items():
        if layer in sizes and parameter in trained:
            sizes[layer] += structure.sizes[parameter]
    return sizes


def mean_multiplier(
    structure: Structure,
    scalings: Iterable[LayerwiseScaling],
    multipliers: Mapping[str, float],
    balanced: Collection[str],
) -> MeanMultiplier:
    """Mean multipliers over the balanced layers and over everything that is trained; NaN without parameters."""
    counts, sums = {True: 0, False: 0}, {True: 0.0, False: 0.0}
    for scaling in scalings:
        for parameter in scaling.trained_parameters():
            layer = structure.layer_of.get(parameter)
            size = structure.sizes.get(parameter, 0 if is_lazy(parameter) else parameter.numel())
            counts[layer in balanced] += size
            sums[layer in balanced] += size * (1.0 if layer is None else multipliers.get(layer, 1.0))
    everything = sum(counts.values())
    return MeanMultiplier(
        sums[True] / counts[True] if counts[True] else math.nan,
        sum(sums.values()) / everything if everything else math.nan,
    )
