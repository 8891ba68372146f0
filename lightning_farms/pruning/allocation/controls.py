"""Allocations that look at no weight: what any other has to beat."""

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
    """One ratio for all layers.

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
        """See the base class: none."""
        return Figures((math.nan,) * len(subject.weights))

    def scores(self, figures: Sequence[float], layers: Sequence[Layer], sparsity: float) -> Tensor:
        """See the base class: 1."""
        return torch.ones(len(layers), dtype=torch.float64, device="cpu")


@dataclass(frozen=True, kw_only=True)
class RampAllocation(LinearAllocation):
    """Ratios that rise with depth alone, from the first block to the last; reversed, they fall.

    Args:
        epsilon: half the range of the scores.
        granularity: without effect: the layers of a block are at one depth.
        floor: least ratio of a layer.
        cap: greatest ratio of a layer.
        reverse: whether the ratios fall.

    Raises:
        ValueError: an argument is out of range.
    """

    label: ClassVar[str] = "ramp"

    def sources(self, subject: Subject) -> Figures:
        """See the base class: the number of the block, from 0."""
        depths = {block: depth for depth, block in enumerate(dict.fromkeys(w.block for w in subject.weights))}
        return Figures(tuple(float(depths[weight.block]) for weight in subject.weights))
