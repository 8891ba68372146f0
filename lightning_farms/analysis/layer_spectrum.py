"""Result of an analysis for one layer: its row of the report."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from enum import StrEnum
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Status(StrEnum):
    """Whether a layer has an alpha; equal to, and written as, the plain words ``"ok"`` and ``"skipped"``."""

    OK = "ok"
    SKIPPED = "skipped"

    __repr__ = str.__repr__


@dataclass(frozen=True, repr=False)
class LayerSpectrum:
    """Spectrum of one layer's weight.

    All quantities are in units of the squared weight. Norms and stable rank are those of a window (of the matrix, for
    a whole-matrix analysis), averaged over windows, so that they too can be compared between layers; under
    ``compat="official"`` they are those of the pooled spectrum, averaged over a convolution's blocks.

    If several blocks of a convolution are fitted, alpha, D, xmin and the p-value are means over the blocks, and errors
    are those of the mean of independent blocks. Quantities that were not asked for are NaN.

    Attributes:
        name: name of the layer: the module's name, with the parameter's if the module has several weights.
        kind: kind of the weight, one of :data:`lightning_farms.analysis.KINDS`.
        shape: shape of the weight as stored.
        aspect_ratio: realised aspect ratio n'/m' of the windows.
        windows: number of windows on each matrix.
        coverage: fraction of the matrix's entries that lie in a window.
        eigenvalue_count: number of eigenvalues of all windows and matrices; for a low-rank product, without those that
            are zero in any case.
        alpha: exponent PL_Alpha_Hill (or that of another fit, if asked for); NaN if ``status`` is ``"skipped"``.
        ks_distance: Kolmogorov-Smirnov distance D between the spectrum's tail and the fit.
        xmin: where the tail starts.
        tail_size: number of eigenvalues in the tail, summed over the fits.
        standard_error: standard error of alpha, (alpha - 1) / sqrt(tail_size), which holds for independent eigenvalues.
        alpha_low: lower end of alpha's bootstrap interval (``Diagnostics.bootstrap``).
        alpha_high: upper end of alpha's bootstrap interval.
        p_value: goodness of fit, the share of power-law samples that fit worse (``Diagnostics.p_value``).
        spectral_norm: largest eigenvalue, the square of the largest singular value (as in WeightWatcher).
        frobenius_norm_squared: sum of the eigenvalues.
        log_norm: log10 of frobenius_norm_squared.
        log_spectral_norm: log10 of spectral_norm.
        stable_rank: sum of the eigenvalues divided by the largest.
        effective_rank: exponential of the entropy of the eigenvalues' shares.
        alpha_hat: alpha * log10(spectral_norm).
        mp_variance: variance of the entries from a Marchenko-Pastur fit (``Diagnostics.marchenko_pastur``).
        mp_lower_edge: lower edge of that law.
        mp_upper_edge: upper edge of that law.
        mp_spike_threshold: the upper edge plus the Tracy-Widom margin; noise exceeds it in one of 100 matrices.
        mp_spikes: number of eigenvalues beyond that threshold, averaged over the windows of all matrices.
        mp_soft_rank: upper edge divided by the largest eigenvalue.
        relative_alpha: alpha divided by that of the twin: 1 for a matrix of independent entries, whatever its shape.
        outlier_eigenvalues: number of eigenvalues that stand out, summed over the fits (``Diagnostics.outliers``).
        alpha_without_outliers: alpha of the fits without these eigenvalues.
        lognormal_ratio: log-likelihood ratio of the power law to a lognormal, divided by its standard deviation;
            negative if the lognormal describes the tail better (``Diagnostics.distributions``).
        lognormal_p: p-value of that ratio; large if the ratio tells nothing.
        exponential_ratio: the same, against an exponential.
        exponential_p: p-value of that ratio.
        truncated_ratio: the same, against a power law with an exponential cut-off, which is never the worse one.
        truncated_p: p-value of that ratio.
        status: a :class:`Status`, ``"ok"`` or ``"skipped"``.
        reason: why the layer was skipped, or a remark (a window that was shrunk); empty if there is none.
        way: routine that computed the eigenvalues of a weight on a device, one of
            :class:`lightning_farms.functional.eigensolvers.Way`; empty on the CPU. It is not a column of tables.
        eigenvalues: all eigenvalues, ascending, float64 on the CPU; None unless asked for.
        twin: row of the same weight with its entries shuffled (``Diagnostics.twin``).
        layout: what the stored dimensions were taken to mean, as in ``Selection(layout=...)``; empty if the dimensions
            are not a weight's own, or their meaning is not known.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    aspect_ratio: float = math.nan
    windows: int = 0
    coverage: float = math.nan
    eigenvalue_count: int = 0
    alpha: float = math.nan
    ks_distance: float = math.nan
    xmin: float = math.nan
    tail_size: float = math.nan
    standard_error: float = math.nan
    alpha_low: float = math.nan
    alpha_high: float = math.nan
    p_value: float = math.nan
    spectral_norm: float = math.nan
    frobenius_norm_squared: float = math.nan
    log_norm: float = math.nan
    log_spectral_norm: float = math.nan
    stable_rank: float = math.nan
    effective_rank: float = math.nan
    alpha_hat: float = math.nan
    mp_variance: float = math.nan
    mp_lower_edge: float = math.nan
    mp_upper_edge: float = math.nan
    mp_spike_threshold: float = math.nan
    mp_spikes: float = math.nan
    mp_soft_rank: float = math.nan
    relative_alpha: float = math.nan
    outlier_eigenvalues: float = math.nan
    alpha_without_outliers: float = math.nan
    lognormal_ratio: float = math.nan
    lognormal_p: float = math.nan
    exponential_ratio: float = math.nan
    exponential_p: float = math.nan
    truncated_ratio: float = math.nan
    truncated_p: float = math.nan
    status: Status = Status.OK
    reason: str = ""
    way: str = field(default="", repr=False)
    eigenvalues: Tensor | None = None
    twin: LayerSpectrum | None = None
    layout: str = field(default="", repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "status", Status(self.status))

    def __repr__(self) -> str:
        """Leave out the numbers added in later versions if they were not asked for."""
        shown = [
            f.name for f in fields(self) if f.repr and not (f.name in ON_REQUEST and math.isnan(getattr(self, f.name)))
        ]
        return f"LayerSpectrum({', '.join(f'{name}={getattr(self, name)!r}' for name in shown)})"

    def __eq__(self, other: object) -> bool:
        """Whether all but the eigenvalues, the routine (``way``) and the layout are equal; NaN equals NaN."""
        return self._compared() == other._compared() if isinstance(other, LayerSpectrum) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._compared())

    def _compared(self) -> tuple[object, ...]:
        names = (name for name in (*COLUMNS, *ON_REQUEST, "twin") if name != "layout")
        values = (getattr(self, name) for name in names)
        return tuple(None if value != value else value for value in values)

    @property
    def interval(self) -> tuple[float, float]:
        """The bootstrap interval of alpha if there is one, else alpha -+ 1.96 standard errors."""
        if math.isfinite(self.alpha_low):
            return self.alpha_low, self.alpha_high
        return self.alpha - 1.96 * self.standard_error, self.alpha + 1.96 * self.standard_error

    def plot_xmin_scan(self) -> Figure:
        """Draw the Kolmogorov-Smirnov distance over all candidates for xmin, and mark the row's own (needs no display).

        If several blocks of a convolution were fitted, the curve is that of all their eigenvalues together, and the
        mark is the mean of the blocks' xmin.

        Returns:
            A matplotlib figure.

        Raises:
            ValueError: the row has no eigenvalues.
        """
        from lightning_farms.plotting import xmin_scan_figure

        if self.eigenvalues is None:
            raise ValueError(
                f"Expected a row that holds its eigenvalues, but {self.name!r} does not: analyze with "
                "keep_eigenvalues=True."
            )
        return xmin_scan_figure(self.eigenvalues, title=self.name, xmin=self.xmin)


ON_REQUEST = (
    "outlier_eigenvalues",
    "alpha_without_outliers",
    "lognormal_ratio",
    "lognormal_p",
    "exponential_ratio",
    "exponential_p",
    "truncated_ratio",
    "truncated_p",
)
"""Attributes of a row that are columns of a table only if a row has them."""

_NO_COLUMNS = ("way", "eigenvalues", "twin", *ON_REQUEST)
COLUMNS = tuple(entry.name for entry in fields(LayerSpectrum) if entry.name not in _NO_COLUMNS)
"""Attributes of a row that are columns of every table, in order."""
