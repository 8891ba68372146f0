"""A row of an allocation: how much one weight loses."""

from __future__ import annotations

from dataclasses import dataclass

from lightning_farms.functional import NofM


@dataclass(frozen=True)
class LayerRatio:
    """What one weight loses.

    Attributes:
        name: of the weight, unique in the model.
        block: the block it belongs to.
        size: its number of weights p.
        source: the figure that its score is made of (an alpha, an outlier ratio, ...); NaN where there is none.
        score: q, its share in the pruning: before bounds the fraction pruned is in proportion to it.
        ratio: the fraction pruned before it is rounded to whole weights; of a pattern, n / m.
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
