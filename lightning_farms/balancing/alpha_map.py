"""Maps from alphas to multipliers: those of `lightning_farms.functional`, with their settings."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor

from lightning_farms.functional.layerwise import (
    check_ratios,
    check_sigmoid,
    tb_linear_map,
    tb_log2,
    tb_sigmoid,
    tb_sqrt,
    tb_step,
)


class AlphaMap(ABC):
    """Base class of maps from the alphas of the balanced layers to multipliers; subclass it for a map of your own.

    Example:
        >>> import torch
        >>> class Proportional(AlphaMap):
        ...     def __call__(self, alphas):
        ...         return alphas / alphas.mean()
        >>> Proportional()(torch.tensor([2.0, 4.0]))
        tensor([0.6667, 1.3333])
    """

    @abstractmethod
    def __call__(self, alphas: Tensor) -> Tensor:
        """Return multipliers (L,), finite and positive, for alphas (L,), which are all finite."""


@dataclass(frozen=True)
class LinearMap(AlphaMap):
    """Linear map from ``min_ratio`` at the smallest alpha to ``max_ratio`` at the largest (TempBalance, AlphaDecay).

    Args:
        min_ratio: s1, positive.
        max_ratio: s2, at least s1.

    Raises:
        ValueError: a ratio is out of range.

    Example:
        >>> import torch
        >>> LinearMap(0.5, 1.5)(torch.tensor([2.0, 3.0, 4.0]))
        tensor([0.5000, 1.0000, 1.5000], dtype=torch.float64)
    """

    min_ratio: float = 0.5
    max_ratio: float = 1.5

    def __post_init__(self) -> None:
        check_ratios(self.min_ratio, self.max_ratio, ("min_ratio", "max_ratio"))

    def __call__(self, alphas: Tensor) -> Tensor:
        """See :func:`lightning_farms.functional.tb_linear_map`."""
        return tb_linear_map(alphas, self.min_ratio, self.max_ratio)


@dataclass(frozen=True)
class SigmoidMap(AlphaMap):
    """TB_Sigmoid: a power of ten that saturates away from the mean alpha.

    Args:
        s_low: strength below the mean, not negative.
        s_high: strength above the mean, not negative.
        tau: steepness per unit of alpha, positive.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> import torch
        >>> SigmoidMap()(torch.tensor([2.0, 3.0, 4.0]))
        tensor([0.3163, 1.0000, 3.1619], dtype=torch.float64)
    """

    s_low: float = 1.0
    s_high: float = 1.0
    tau: float = 10.0

    def __post_init__(self) -> None:
        check_sigmoid(self.s_low, self.s_high, self.tau)

    def __call__(self, alphas: Tensor) -> Tensor:
        """See :func:`lightning_farms.functional.tb_sigmoid`."""
        return tb_sigmoid(alphas, self.s_low, self.s_high, self.tau)


@dataclass(frozen=True)
class SqrtMap(AlphaMap):
    """Map to multipliers of mean 1 that are proportional to the root of alpha.

    Example:
        >>> import torch
        >>> SqrtMap()(torch.tensor([1.0, 4.0]))
        tensor([0.6667, 1.3333], dtype=torch.float64)
    """

    def __call__(self, alphas: Tensor) -> Tensor:
        """See :func:`lightning_farms.functional.tb_sqrt`."""
        return tb_sqrt(alphas)


@dataclass(frozen=True)
class Log2Map(AlphaMap):
    """Map to multipliers of mean 1 that are proportional to the logarithm of alpha.

    Example:
        >>> import torch
        >>> Log2Map()(torch.tensor([2.0, 8.0]))
        tensor([0.5000, 1.5000], dtype=torch.float64)
    """

    def __call__(self, alphas: Tensor) -> Tensor:
        """See :func:`lightning_farms.functional.tb_log2`."""
        return tb_log2(alphas)


@dataclass(frozen=True)
class StepMap(AlphaMap):
    """Map by the rank of alpha alone, in equal steps up from ``min_ratio``, so that no outlier squeezes the others.

    Args:
        min_ratio: s1, positive.
        max_ratio: s2, at least s1; never quite reached.

    Raises:
        ValueError: a ratio is out of range.

    Example:
        >>> import torch
        >>> StepMap(0.5, 1.5)(torch.tensor([2.0, 2.1, 2.2, 9.0]))
        tensor([0.5000, 0.7500, 1.0000, 1.2500], dtype=torch.float64)
    """

    min_ratio: float = 0.5
    max_ratio: float = 1.5

    def __post_init__(self) -> None:
        check_ratios(self.min_ratio, self.max_ratio, ("min_ratio", "max_ratio"))

    def __call__(self, alphas: Tensor) -> Tensor:
        """See :func:`lightning_farms.functional.tb_step`."""
        return tb_step(alphas, self.min_ratio, self.max_ratio)
