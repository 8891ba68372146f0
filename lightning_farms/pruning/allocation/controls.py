"""Allocations that look at no weight, as baselines that any other allocation has to beat."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lightning_farms.pruning.allocation.base import Allocation, Figures, Layer, LinearAllocation, Subject


@dataclass(frozen=True, kw_only=True)
class UniformAllocation(Allocation):
    """Allocation of the same ratio to all layers.

    Args:
        granularity: without effect.
        floor: least ratio of a layer.
        cap: greatest ratio of a layer.
        reverse: without effect.

    Raises:
        ValueError: an argument is out of range.
    """

    label: ClassVar[str] = "uniform"

    def sources(self, subject: Subject) -> Figures:
        """See the base class; there are no figures."""
        return Figures((math.nan,) * len(subject.weights))

    def scores(self, figures: Sequence[float], layers: Sequence[Layer], sparsity: float) -> Tensor:
        """See the base class; all scores are 1."""
        return torch.ones(len(layers), dtype=torch.float64, device="cpu")


@dataclass(frozen=True, kw_only=True)
class RampAllocation(LinearAllocation):
    """Allocation of ratios that rise with depth alone, from the first block to the last; reversed, they fall.

    Args:
        epsilon: half the range of the scores.
        granularity: without effect, as all layers of a block are at the same depth.
        floor: least ratio of a layer.
        cap: greatest ratio of a layer.
        reverse: whether the ratios fall.

    Raises:
        ValueError: an argument is out of range.
    """

    label: ClassVar[str] = "ramp"

    def sources(self, subject: Subject) -> Figures:
        """See the base class; the figure is the number of the block, counted from 0."""
        depths = {block: depth for depth, block in enumerate(dict.fromkeys(w.block for w in subject.weights))}
        return Figures(tuple(float(depths[weight.block]) for weight in subject.weights))
