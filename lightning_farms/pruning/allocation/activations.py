"""Allocations by weights and inputs together: OWL and DLP. Both use |W| times the norm of the input."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_farms.pruning.allocation.base import DensityAllocation, Figures, Subject, Weight


@dataclass(frozen=True, kw_only=True)
class ActivationAllocation(DensityAllocation):
    r"""Allocation by a statistic of :math:`|W_{ij}| \sqrt{\overline{x_j^2}}` over all weights of a block or a layer."""

    needs_calibration: ClassVar[bool] = True

    def sources(self, subject: Subject) -> Figures:
        """See the base class; each weight gets the figure of its block or layer."""
        squares = subject.mean_squares()
        units: dict[str, list[Weight]] = {}
        for weight in subject.weights:
            units.setdefault(weight.block if self.granularity == "block" else weight.name, []).append(weight)
        values: dict[str, float] = {}
        reasons: dict[str, str] = {}
        for weights in units.values():
            found = {weight.name: _metric(weight, squares) for weight in weights}
            metrics = [metric for metric in found.values() if isinstance(metric, Tensor)]
            figure = self.figure(metrics) if metrics else math.nan
            for name, metric in found.items():
                values[name] = figure if isinstance(metric, Tensor) else math.nan
            reasons |= {name: metric for name, metric in found.items() if isinstance(metric, str)}
        return Figures(tuple(values[weight.name] for weight in subject.weights), reasons)

    @abstractmethod
    def figure(self, metrics: Sequence[Tensor]) -> float:
        r"""Compute the figure of a block or a layer.

        Args:
            metrics: :math:`|W| \sqrt{\overline{x^2}}` of its weights, (P, outputs, inputs) each, float32.

        Returns:
            The figure.
        """


@dataclass(frozen=True)
class OWLAllocation(ActivationAllocation):
    r"""Outlier Weighed Layerwise sparsity (OWL): blocks with many outliers are pruned less.

    The figure is the share of a block's weights with
    :math:`|W_{ij}| \|x_j\|_2 > M \cdot \operatorname{mean}(|W| \|x\|_2)`, where the mean is also taken over the block.

    Args:
        threshold: M, positive; 5 in the authors' program.
        spread: lambda, half the range of the ratios; 0.08 in the authors' program.
        granularity: ``"block"`` or ``"layer"``.
        floor: least ratio of a layer.
        cap: greatest ratio of a layer.
        reverse: whether the order is reversed.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> OWLAllocation().figure([torch.tensor([[[1.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]]])])
        0.125

    Reference:
        Yin et al., Outlier Weighed Layerwise Sparsity (OWL), ICML 2024.
    """

    threshold: float = 5.0

    label: ClassVar[str] = "owl"
    spares_large: ClassVar[bool] = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.threshold < math.inf:
            raise ValueError(f"Expected argument `threshold` to be a positive number, but got {self.threshold}.")

    def figure(self, metrics: Sequence[Tensor]) -> float:
        """See the base class; the figure is the share of outliers."""
        size = sum(metric.numel() for metric in metrics)
        mean = sum(metric.sum(dtype=torch.float64).item() for metric in metrics) / size
        return sum(int((metric > self.threshold * mean).sum()) for metric in metrics) / size


@dataclass(frozen=True, kw_only=True)
class DLPAllocation(ActivationAllocation):
    r"""Dynamic Layerwise Pruning (DLP): the larger a block's median, the less important it is, the more is pruned.

    The figure is the median of :math:`|W_{ij}| \|x_j\|_2` over a block (for an even number of weights, the lower of
    the two in the middle, as in torch). The authors' relative importance is 1 minus the median's share in the sum over
    blocks; the map, which runs from the least to the greatest figure, makes the two equivalent. Inputs enter by their
    root mean square, which differs from the norm by the same factor for all.

    Args:
        spread: half the range of the ratios; 0.15 in the authors' program (their alpha).
        granularity: ``"block"`` or ``"layer"``.
        floor: least ratio of a layer.
        cap: greatest ratio of a layer.
        reverse: whether the order is reversed.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> DLPAllocation().figure([torch.tensor([[[1.0, 2.0, 5.0]]]), torch.tensor([[[3.0, 9.0]]])])
        3.0

    Reference:
        Chen et al., DLP: Dynamic Layerwise Pruning in Large Language Models, ICML 2025.
    """

    spread: float = 0.15

    label: ClassVar[str] = "dlp"
    spares_large: ClassVar[bool] = False

    def figure(self, metrics: Sequence[Tensor]) -> float:
        """See the base class; the figure is the median."""
        return torch.cat([metric.flatten() for metric in metrics]).median().item()


def _metric(weight: Weight, squares: Mapping[str, Tensor]) -> Tensor | str:
    """|W| sqrt(mean x^2), (P, outputs, inputs), without experts that saw no token; or the reason why there is none."""
    if weight.name not in squares:
        return "there are no inputs of it"
    matrices = weight.matrices
    means = squares[weight.name].to(matrices.device, torch.float32).reshape(-1, 1, matrices.shape[-1])
    seen = (means != 0).any(dim=-1).flatten()
    if not seen.any():
        return "there are no inputs of it"
    if not means.isfinite().all():
        return "its inputs are not all finite"
    if not matrices.isfinite().all():
        return "the weights are not all finite"
    chosen = matrices if bool(seen.all()) else matrices[seen]
    return chosen.to(torch.float32).abs() * means[seen].sqrt()
