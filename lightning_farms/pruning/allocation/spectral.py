"""Allocations by the heavy tails of the weights' spectra: FARMS, and AlphaPruning with whole matrices."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from lightning_farms.analysis import FARMS, LayerWeight, SpectralMethod, WholeMatrix, analyze_weights
from lightning_farms.analysis.method import Compat, Fit
from lightning_farms.pruning.allocation._rounding import order_under_rounding, rounded
from lightning_farms.pruning.allocation.base import Figures, LinearAllocation, Subject, Weight

DEFAULT_METHOD = FARMS(window=96)
"""The method of :class:`FARMSAllocation`. Of tiles of 48, 96, 192, 384 and the largest that fit, these cost least, both
on SmolLM2-135M (2.9 s, the paper's windows 31 s) and on a matrix of 4096 x 4096. On SmolLM2 the scores of the blocks
correlate to 0.97 with those of the paper's windows; ``examples/pruning/windows.py`` makes the table."""


@dataclass(frozen=True, kw_only=True)
class SpectralAllocation(LinearAllocation):
    """Allocation by the alphas of an analysis: the larger alpha, the less trained is a layer, and the more is pruned.

    Attributes:
        check_rounding: whether the analysis is repeated with the weights rounded to bfloat16 (or, if they already have
            that type, moved at random within the range that rounds to them), so that the report says if the order of
            the blocks depends on it. It doubles the time, and is off by default: with the Hill fit no change was seen,
            and with a fit that scans over xmin the report says in any case that it is not stable.
    """

    check_rounding: bool = False

    @property
    @abstractmethod
    def spectral_method(self) -> SpectralMethod:
        """The method by which spectra are computed and fitted."""

    def sources(self, subject: Subject) -> Figures:
        """See the base class; the figure is PL_Alpha_Hill of each weight, with the matrices of experts pooled."""
        method = self.spectral_method
        figures = _alphas(subject.weights, method)
        notes: list[str] = []
        if method.fit not in ("hill", "hill_paper"):
            notes.append(
                f'fit="{method.fit}" looks for xmin among the eigenvalues, and a rounding of the weights may move it '
                'far; fit="hill" is stable'
            )
        if self.check_rounding:
            again = _alphas(subject.weights, method, round_weights=True)
            notes += order_under_rounding(self, subject.weights, figures.values, again.values)
        return figures._replace(notes=tuple(notes))


@dataclass(frozen=True)
class FARMSAllocation(SpectralAllocation):
    """Allocation by FARMS, i.e. by alphas of windows of one aspect ratio.

    Args:
        method: windows and fit. The default is tiles of 96 x 96 and the Hill fit, the cheapest whose ratios stay close
            to those of the paper's windows (:data:`DEFAULT_METHOD`). The setting of the authors' program is
            ``FARMS(1.0, 2000, 10, fit="peak", compat="official")``.
        epsilon: half the range of the scores.
        granularity: ``"block"`` or ``"layer"``.
        floor: least ratio of a layer.
        cap: greatest ratio of a layer.
        reverse: whether the order is reversed.
        check_rounding: whether to check that the order of the blocks is stable under rounding of the weights.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> FARMSAllocation(epsilon=0.3).name, FARMSAllocation(reverse=True).name
        ('farms', 'farms-reversed')

    Reference:
        Hu et al., ICML 2025, Section 4.2; Lu et al., AlphaPruning, NeurIPS 2024.
    """

    method: FARMS = DEFAULT_METHOD

    label: ClassVar[str] = "farms"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.method, FARMS):
            raise ValueError(f"Expected argument `method` to be FARMS(...), but got {self.method!r}.")

    @property
    def spectral_method(self) -> SpectralMethod:
        """See the base class."""
        return self.method


@dataclass(frozen=True)
class WholeMatrixAllocation(SpectralAllocation):
    """AlphaPruning's allocation, by alphas of whole matrices.

    Args:
        fit: how xmin is chosen; ``"peak"`` in the authors' program.
        compat: ``"official"`` for the numbers of the authors' program.
        epsilon: half the range of the scores.
        granularity: ``"block"`` or ``"layer"``.
        floor: least ratio of a layer.
        cap: greatest ratio of a layer.
        reverse: whether the order is reversed.
        check_rounding: whether to check that the order of the blocks is stable under rounding of the weights.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> WholeMatrixAllocation("peak").spectral_method
        WholeMatrix(fit='peak', compat=None)

    Reference:
        Lu et al., AlphaPruning, NeurIPS 2024.
    """

    fit: Fit = "hill"
    compat: Compat | None = None

    label: ClassVar[str] = "whole"

    def __post_init__(self) -> None:
        super().__post_init__()
        WholeMatrix(fit=self.fit, compat=self.compat)  # checks the arguments

    @property
    def spectral_method(self) -> SpectralMethod:
        """See the base class."""
        return WholeMatrix(fit=self.fit, compat=self.compat)


def _alphas(weights: Sequence[Weight], method: SpectralMethod, *, round_weights: bool = False) -> Figures:
    """Alpha of each weight, with no more weights in memory than the analysis holds at a time."""
    report = analyze_weights(_layers(weights, round_weights), method)
    reasons = {row.name: row.reason for row in report if not math.isfinite(row.alpha)}
    return Figures(tuple(row.alpha for row in report), reasons)


def _layers(weights: Sequence[Weight], round_weights: bool) -> Iterator[LayerWeight]:
    for weight in weights:
        matrices: Tensor = weight.matrices
        shape = tuple(matrices.shape[1:] if len(matrices) == 1 else matrices.shape)
        yield LayerWeight(weight.name, "linear", shape, rounded(matrices) if round_weights else matrices, ())
        del matrices
