"""The two methods to analyse a weight matrix: through windows of one aspect ratio (FARMS), or as a whole."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal, get_args

from torch import Tensor

from lightning_farms.functional.power_law import PowerLawFit, fit_hill, fit_ks, fit_peak
from lightning_farms.functional.submatrices import (
    Windows,
    check_window_arguments,
    official_convolution_windows,
    official_linear_windows,
    window_grid,
)

Fit = Literal["hill", "hill_paper", "ks", "peak", "peak_corrected"]
SCANS = ("ks", "peak", "peak_corrected")
"""The fits that choose xmin among candidates by their Kolmogorov-Smirnov distances."""

Blocks = Literal["averaged", "pooled"]
Compat = Literal["official"]

CONVOLUTION_KINDS = ("convolution", "transposed convolution")


class SpectralMethod(ABC):
    """How the matrices of a layer become one or more spectra, and how a spectrum is fitted.

    Attributes:
        fit: how the power law's ``xmin`` is chosen.
        compat: ``"official"`` for the numbers of the authors' program, ``None`` for ours.
        label: the first part of log keys.
    """

    fit: Fit
    compat: Compat | None
    label: ClassVar[str]

    def fit_tail(self, eigenvalues: Tensor) -> PowerLawFit:
        """Fit spectra of shape (..., N) by the method that ``fit`` names."""
        if self.fit in ("hill", "hill_paper"):
            return fit_hill(eigenvalues, form="code" if self.fit == "hill" else "paper")
        if self.fit == "ks":
            return fit_ks(eigenvalues)
        return fit_peak(eigenvalues, lower_bound="published" if self.fit == "peak" else "corrected")

    @property
    def forgives_rounding(self) -> bool:
        """Whether alpha is a smooth function of the eigenvalues, so that float32 spectra may do; a scan's is not."""
        return self.fit in ("hill", "hill_paper") and self.compat is None

    def eigenvalue_scale(self, kind: str) -> float:
        """Return the factor of eigenvalues: 1, or 1/2 for the authors' convolutions (weights times sqrt(0.5))."""
        return 0.5 if self.compat == "official" and kind in CONVOLUTION_KINDS else 1.0

    def refusal(self, kind: str, dimensions: int, grouped: bool) -> str | None:
        """Return why this method refuses a weight of this kind, or None; the authors' program knows two kinds."""
        if self.compat != "official" or ((kind, dimensions) in (("linear", 2), ("convolution", 4)) and not grouped):
            return None
        return 'compat="official" covers Linear weights and those of Conv2d without groups only'

    def orient(self, matrices: Tensor, kind: str) -> Tensor:
        """Return matrices (P, m, n), transposed if the authors' program transposes a convolution (rows >= columns)."""
        tall = matrices.shape[-2] >= matrices.shape[-1]
        return matrices if tall or self.compat is None or kind != "convolution" else matrices.mT

    @abstractmethod
    def windows(self, rows: int, columns: int, kind: str) -> Windows:
        """Return the grid of windows on each matrix of a layer.

        Args:
            rows: number of rows m of each matrix.
            columns: number of columns n of each matrix.
            kind: the layer's kind.

        Returns:
            The grid of windows.

        Raises:
            ValueError: the authors' rule has no answer for this matrix (``compat="official"``).
        """

    @abstractmethod
    def pools_blocks(self, kind: str, positions: int) -> bool:
        """Whether the eigenvalues of all blocks are fitted at once; if not, each block is, and metrics are averaged."""


def _check_choices(fit: str, compat: str | None) -> None:
    if fit not in get_args(Fit):
        raise ValueError(f"Expected argument `fit` to be one of {get_args(Fit)}, but got {fit!r}.")
    if compat is not None and compat not in get_args(Compat):
        raise ValueError(f'Expected argument `compat` to be None or "official", but got {compat!r}.')


@dataclass(frozen=True)
class FARMS(SpectralMethod):
    r"""Fixed-Aspect-Ratio Matrix Subsampling: spectra of windows whose aspect ratio is the same for every layer.

    The windows :math:`W_i \in R^{m' \times n'}` have :math:`n'/m' = Q`. If a layer is one matrix, or several without
    a kernel (complex or batched weights), the eigenvalues of all windows are pooled and fitted once. For a convolution
    with more than one kernel position, the eigenvalues of all kernel positions are pooled and fitted for each window,
    and the metrics are averaged over the windows. By default windows are as large as the matrix's smaller dimension
    and cover every row and column. A window larger than a matrix is shrunk with its ratio kept, and the report says
    so.

    Args:
        aspect_ratio: Q = n'/m', columns divided by rows of a window, positive. 1.0 is best in the paper's ablation.
        window: number of rows m' of a window; ``None`` for the largest that fits into the matrix's smaller dimension.
        steps: number of windows per dimension; ``None`` for tiles that cover the matrix.
        fit: ``"hill"`` (the upper half of the spectrum, the code's form) or ``"hill_paper"`` (the paper's form),
            ``"ks"`` (xmin of least Kolmogorov-Smirnov distance), ``"peak"`` or ``"peak_corrected"`` (xmin near the
            histogram's peak, with the published or the corrected lower bound).
        compat: ``"official"`` for the numbers of the authors' programs, with their windows and their scale of
            convolutions; it refuses what they refuse. It needs ``window`` and ``steps``, which the programs use for
            linear layers only; a window that does not fit is clamped to the smaller dimension, as in the program for
            language models.
        blocks: for convolutions: ``"averaged"`` fits each window separately and averages the metrics, ``"pooled"`` fits
            the eigenvalues of all windows at once (the two columns of Table 7).

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> FARMS().windows(512, 100, "linear").number
        6

    Reference:
        Hu et al., Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias, ICML 2025, Section 3.3.
    """

    aspect_ratio: float = 1.0
    window: int | None = None
    steps: int | None = None
    _: KW_ONLY
    fit: Fit = "hill"
    compat: Compat | None = None
    blocks: Blocks = "averaged"

    label: ClassVar[str] = "farms"

    def __post_init__(self) -> None:
        check_window_arguments(self.aspect_ratio, self.window, self.steps)
        _check_choices(self.fit, self.compat)
        if self.blocks not in get_args(Blocks):
            raise ValueError(f"Expected argument `blocks` to be one of {get_args(Blocks)}, but got {self.blocks!r}.")
        if self.compat == "official" and (self.window is None or self.steps is None):
            raise ValueError(
                'Expected arguments `window` and `steps` to be given with compat="official" (the authors\' '
                f"num_row_samples and sampling_ops_per_dim), but got {self.window} and {self.steps}."
            )

    def windows(self, rows: int, columns: int, kind: str) -> Windows:
        """See the base class; Section 3.3 of the paper, or the authors' program under ``compat="official"``."""
        if self.compat is None:
            return window_grid(rows, columns, self.aspect_ratio, self.window, self.steps)
        if kind == "convolution":
            return official_convolution_windows(rows, columns, self.aspect_ratio)
        assert self.window is not None
        assert self.steps is not None
        return official_linear_windows(rows, columns, self.aspect_ratio, self.window, self.steps)

    def pools_blocks(self, kind: str, positions: int) -> bool:
        """See the base class; a 1 x 1 convolution is a linear layer, except to the authors' program."""
        apart = kind in CONVOLUTION_KINDS and (positions > 1 or self.compat is not None)
        return self.blocks == "pooled" or not apart


@dataclass(frozen=True)
class WholeMatrix(SpectralMethod):
    """The spectrum of the whole matrix, as in TempBalance and WeightWatcher; it is biased by the aspect ratio.

    The eigenvalues of all kernel positions of a convolution (all matrices of a batched weight) are pooled.

    Args:
        fit: as in :class:`FARMS`.
        compat: ``"official"`` for the numbers of the authors' program without FARMS.

    Raises:
        ValueError: ``fit`` or ``compat`` is unknown.

    Example:
        >>> WholeMatrix(fit="ks").windows(512, 100, "linear").number
        1
    """

    _: KW_ONLY
    fit: Fit = "hill"
    compat: Compat | None = None

    label: ClassVar[str] = "whole"

    def __post_init__(self) -> None:
        _check_choices(self.fit, self.compat)

    def windows(self, rows: int, columns: int, kind: str) -> Windows:
        """Return one window: the whole matrix."""
        return Windows(rows, columns, (0,), (0,))

    def pools_blocks(self, kind: str, positions: int) -> bool:
        """Always True, as there is one block only."""
        return True
