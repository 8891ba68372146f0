"""Checks whether the order of the blocks is stable under rounding of the weights."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from lightning_farms.pruning.allocation.base import Layer, LinearAllocation

_DIGITS = 8  # digits of the significand of bfloat16, including the leading one


def rounded(weights: Tensor) -> Tensor:
    """Round weights to bfloat16; weights that already have that precision move within the range that rounds to them."""
    coarse = weights.to(torch.bfloat16).to(torch.float32)
    if not torch.equal(coarse, weights.to(torch.float32)):
        return coarse
    generator = torch.Generator(weights.device).manual_seed(0)
    moves = 0.99 * (torch.rand(weights.shape, generator=generator, device=weights.device) - 0.5)  # in steps
    mantissa, exponent = torch.frexp(coarse)
    finer = (mantissa.abs() == 0.5) & (moves * mantissa < 0)  # below a power of two the steps are half as large
    return coarse + torch.ldexp(moves, exponent - _DIGITS - finer.to(exponent.dtype))


def order_under_rounding(
    allocation: LinearAllocation, layers: Sequence[Layer], before: Sequence[float], after: Sequence[float]
) -> list[str]:
    """A note if rounding changes the order of the blocks (or layers), otherwise an empty list."""
    what = allocation.granularity
    names = [layer.block if what == "block" else layer.name for layer in layers]
    first, second = (_of_names(names, allocation.scores(figures, layers, 0.5)) for figures in (before, after))
    places, new_places = _places(first), _places(second)
    moved = {name: abs(places[name] - new_places[name]) for name in places if places[name] != new_places[name]}
    if not moved:
        return []
    farthest = max(moved, key=moved.__getitem__)
    change = max(abs(first[name] - second[name]) for name in first)
    return [
        f"rounding the weights to bfloat16 changes the place of {len(moved)} of {len(places)} {what}s in the order of "
        f"the scores (most of {farthest}, from {places[farthest] + 1} to {new_places[farthest] + 1}), and scores by up "
        f"to {change:.2g}"
    ]


def _of_names(names: Sequence[str], scores: Tensor) -> dict[str, float]:
    return dict(zip(names, scores.tolist(), strict=True))


def _places(scores: dict[str, float]) -> dict[str, int]:
    return {name: place for place, name in enumerate(sorted(scores, key=scores.__getitem__))}
