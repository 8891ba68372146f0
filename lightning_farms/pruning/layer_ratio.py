"""A row of an allocation: how much of one weight is pruned."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_farms.functional import NofM


@dataclass(frozen=True)
class LayerRatio:
    """How much of one weight is pruned.

    Attributes:
        name: name of the weight, unique in the model.
        block: the block to which it belongs.
        size: its number of weights p.
        source: the figure from which its score is computed (an alpha, an outlier ratio, ...); NaN if there is none.
        score: q, its share in the pruning: the fraction pruned is in proportion to it, before bounds apply.
        ratio: the fraction pruned before it is rounded to whole weights; n / m for a pattern.
        zeros: the number of weights pruned.
        pattern: n of every m consecutive inputs; None: any ``zeros`` of the weights.
    """

    name: str
    block: str
    size: int
    source: float
    score: float
    ratio: float
    zeros: int
    pattern: NofM | None = None

    @property
    def reached(self) -> float:
        """The fraction pruned, in whole weights."""
        return self.zeros / self.size
