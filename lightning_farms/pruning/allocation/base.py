"""Base classes of allocations, and the protocols of the layers and weights that they work on."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import ClassVar, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from lightning_farms.functional import linear_scores
from lightning_farms.functional.vectors import vector

Granularity = Literal["block", "layer"]


class Layer(Protocol):
    """Everything that an allocation has to know about a weight."""

    @property
    def name(self) -> str:
        """Name of the weight, unique in the model."""

    @property
    def block(self) -> str:
        """Name of the block to which the weight belongs."""

    @property
    def size(self) -> int:
        """Number of weights."""


class Weight(Layer, Protocol):
    """A layer with its values, such as :class:`lightning_farms.pruning.PrunableWeight`."""

    @property
    def matrices(self) -> Tensor:
        """The matrices (P, outputs, inputs); they may be read anew at each access."""


class Subject(Protocol):
    """The weights to prune, and what is known about their inputs."""

    @property
    def weights(self) -> Sequence[Weight]:
        """The weights in the model's order."""

    def mean_squares(self) -> Mapping[str, Tensor]:
        """Mean squared inputs of the dense model, by the name of the weight: (inputs,) or (P, inputs).

        Raises:
            ValueError: there is no text to run the model on.
        """


class Figures(NamedTuple):
    """The raw figure of each weight, from which its score is computed.

    Attributes:
        values: the figures in the order of the weights; NaN where there is none.
        reasons: the reason why a weight has no figure, by its name.
        notes: further remarks for the report.
    """

    values: tuple[float, ...]
    reasons: Mapping[str, str] = MappingProxyType({})
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Allocation(ABC):
    """Base class of allocations, which turn figures of a model's weights into their shares in the pruning.

    Attributes:
        granularity: ``"block"``: the layers of a block share one score; ``"layer"``: each layer has its own.
        floor: least ratio of a layer.
        cap: greatest ratio of a layer, at most 1.
        reverse: whether layers that would be pruned most are pruned least, and vice versa, as a control.
        needs_calibration: whether the inputs of the dense model are used.
        label: name of the allocation in reports and on the command line.
    """

    granularity: Granularity = "block"
    floor: float = 0.0
    cap: float = 1.0
    reverse: bool = False

    needs_calibration: ClassVar[bool] = False
    label: ClassVar[str]

    def __post_init__(self) -> None:
        if self.granularity not in get_args(Granularity):
            raise ValueError(
                f"Expected argument `granularity` to be one of {get_args(Granularity)}, but got {self.granularity!r}."
            )
        if not 0 <= self.floor <= self.cap <= 1:
            raise ValueError(
                f"Expected arguments `floor` and `cap` to satisfy 0 <= floor <= cap <= 1, but got {self.floor} and "
                f"{self.cap}."
            )

    @property
    def name(self) -> str:
        """The label, with a suffix if reversed."""
        return f"{self.label}-reversed" if self.reverse else self.label

    @abstractmethod
    def sources(self, subject: Subject) -> Figures:
        """Compute the raw figure of each weight.

        Args:
            subject: the weights, and the inputs of the dense model.

        Returns:
            One figure per weight.

        Raises:
            ValueError: something that is needed is missing.
        """

    @abstractmethod
    def scores(self, figures: Sequence[float], layers: Sequence[Layer], sparsity: float) -> Tensor:
        """Compute each layer's score, its share in the pruning.

        Args:
            figures: one figure per layer, as :meth:`sources` returns them.
            layers: the layers, in the same order.
            sparsity: S, the fraction of all weights to prune.

        Returns:
            (L,) q, not negative, float64. A layer without a finite figure (in a block that has none) gets 1.
        """

    def groups(self, layers: Sequence[Layer]) -> Sequence[Hashable] | None:
        """The block of each layer, or None if each layer has its own score."""
        return [layer.block for layer in layers] if self.granularity == "block" else None


@dataclass(frozen=True, kw_only=True)
class LinearAllocation(Allocation):
    r"""Base class with AlphaPruning's linear map: the larger the figure, the more is pruned.

    .. math:: q_l = 1 - \epsilon + 2 \epsilon \frac{a_l - \min a}{\max a - \min a}

    with :math:`a_l` the figure of the layer, or the mean of the finite figures of its block. Reversed, it is 2 - q.

    Attributes:
        epsilon: half the range of the scores, in [0, 1].
    """

    epsilon: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.epsilon <= 1:
            raise ValueError(f"Expected argument `epsilon` to be in [0, 1], but got {self.epsilon}.")

    def scores(self, figures: Sequence[float], layers: Sequence[Layer], sparsity: float) -> Tensor:
        """See the base class; the sparsity has no effect."""
        sign = -1 if self.reverse else 1
        return linear_scores(sign * vector(figures), self.epsilon, self.groups(layers))


@dataclass(frozen=True, kw_only=True)
class DensityAllocation(Allocation):
    r"""Base class with OWL's and DLP's map: ratios are spread over a range of fixed width around the target.

    .. math:: r_l = S + 2 \lambda \left(t_l - \bar t\right), \quad
              t_l = \frac{a_l - \min a}{\max a - \min a} \text{ or } 1 - t_l, \quad q_l = \max(r_l, 0) / S

    with :math:`\bar t` the mean over all weights (in the authors' programs over blocks, which are of one size there).

    Attributes:
        spread: lambda, half the range of the ratios, in [0, 1].
        spares_large: whether a large figure means that little is pruned.
    """

    spread: float = 0.08
    spares_large: ClassVar[bool]

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.spread <= 1:
            raise ValueError(f"Expected argument `spread` to be in [0, 1], but got {self.spread}.")

    def scores(self, figures: Sequence[float], layers: Sequence[Layer], sparsity: float) -> Tensor:
        """See the base class."""
        sign = -1 if self.reverse != self.spares_large else 1
        mapped = linear_scores(sign * vector(figures), 1.0, self.groups(layers)) / 2  # t; 1/2 without a figure
        sizes = vector(layer.size for layer in layers)
        known = vector(figures).isfinite() if self.granularity == "layer" else _known(figures, layers)
        weights = sizes * known
        if sparsity <= 0 or not bool(known.any()):
            return torch.ones_like(mapped)
        mean = (weights * mapped).sum() / weights.sum()
        ratios = sparsity + 2 * self.spread * (mapped - mean)
        return (ratios.clamp(min=0) / sparsity).where(known, 1.0)


def _known(figures: Sequence[float], layers: Sequence[Layer]) -> Tensor:
    """Mark the layers that belong to a block with a finite figure."""
    blocks = {layer.block for figure, layer in zip(figures, layers, strict=True) if math.isfinite(figure)}
    return torch.tensor([layer.block in blocks for layer in layers], device="cpu")
