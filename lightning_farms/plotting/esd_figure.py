"""The spectral density of one layer, with its fitted tail and the Marchenko-Pastur law of a random matrix."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray

from lightning_farms.functional.random_matrix import marchenko_pastur_density_between
from lightning_farms.functional.spectral_metrics import NUMERICALLY_ZERO, spectral_density
from lightning_farms.plotting._arrays import Values, as_array
from lightning_farms.plotting._labels import label_within_a_decade, shortened
from lightning_farms.plotting._margins import Margins, add_axes, name_axes
from lightning_farms.plotting._style import in_plain_style, plain_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_EIGENVALUE = r"eigenvalue $\lambda$ of $W^\top W$"
_LEGEND = 0.68  # inches; three lines
_MARGINS = Margins(left=0.82, right=0.25, bottom=1.26, top=0.4)
_NOT_DRAWN = 0.05  # share of the eigenvalues, the smallest ones


@in_plain_style
def esd_figure(
    eigenvalues: Values,
    *,
    alpha: float,
    xmin: float,
    ks_distance: float,
    title: str,
    mp_edges: tuple[float, float] | None = None,
    spike_threshold: float = math.nan,
) -> Figure:
    r"""Draw an empirical spectral density on logarithmic axes, with the power law fitted to its tail.

    .. math:: \rho(x) = s \, \frac{\alpha - 1}{x_{min}} \left(\frac{x}{x_{min}}\right)^{-\alpha},
        \quad x \ge x_{min}, \quad s = \#\{\lambda \ge x_{min}\} / N

    The tail has the mass of the eigenvalues in its range, so that a good fit lies on the density. Likewise, the
    Marchenko-Pastur law, drawn if its edges are given (they determine it), has the mass of the eigenvalues up to the
    spike threshold. Eigenvalues below 1e-12 of the largest, and the smallest 5 % of the others, which would take up
    most of the axis, count in N but are not drawn; those that are not finite are dropped.

    Args:
        eigenvalues: (N,), in units of the squared weight, in any order.
        alpha: Exponent of the tail; the tail is drawn if it is above 1 and `xmin` is positive.
        xmin: Where the tail begins, in units of the squared weight.
        ks_distance: Kolmogorov-Smirnov distance between tail and eigenvalues, for the legend.
        title: Title of the figure, e.g. the layer's name.
        mp_edges: Lower and upper edge of the Marchenko-Pastur law; if they are not finite, no law is drawn.
        spike_threshold: Eigenvalue beyond which others count as spikes, marked by a line. NaN: no line is drawn, and
            the law has the mass of the eigenvalues up to the upper edge.

    Returns:
        The figure; pyplot does not know it, so it need not be closed.

    Raises:
        ValueError: If no eigenvalue is positive and finite, or the edges are not ascending and positive.

    Example:
        >>> figure = esd_figure([1.0, 2.0, 4.0, 8.0], alpha=2.0, xmin=2.0, ks_distance=0.1, title="fc")
        >>> [line.get_label() for line in figure.axes[0].get_lines()]
        ['tail $x^{-\\alpha}$: $\\alpha$ = 2.00, D = 0.100', '$x_{min}$ = 2']
    """
    finite = _finite(eigenvalues)
    _check_edges(mp_edges)
    figure = plain_figure(6.4, 4.9)
    axes = add_axes(figure, _MARGINS)
    axes.set_xscale("log")
    axes.set_yscale("log")
    visible = _draw_density(axes, finite)
    _draw_random_matrix(axes, finite, mp_edges, spike_threshold, visible)
    if xmin > 0 and np.isfinite(xmin):
        _draw_tail(axes, finite, alpha, xmin, ks_distance)
    label_within_a_decade(axes.xaxis)
    label_within_a_decade(axes.yaxis)
    axes.grid(visible=True, which="major", alpha=0.25)
    name_axes(axes, _MARGINS, title=shortened(title, 56), horizontal=_EIGENVALUE, vertical="density", legend=_LEGEND)
    figure.legend(*axes.get_legend_handles_labels(), loc="lower center", ncols=2, fontsize=9, frameon=False)
    return figure


def _finite(eigenvalues: Values) -> NDArray[np.float64]:
    array = as_array(eigenvalues, "eigenvalues", 1)
    finite = array[np.isfinite(array)]
    if not (finite > 0).any():
        raise ValueError(
            f"Expected argument `eigenvalues` to have a positive finite value, but got none among {array.size}."
        )
    return finite


def _check_edges(edges: tuple[float, float] | None) -> None:
    if edges is not None and np.isfinite(edges).all() and not 0 <= edges[0] < edges[1]:
        raise ValueError(f"Expected argument `mp_edges` to be ascending and not negative, but got {edges}.")


def _draw_density(axes: Axes, eigenvalues: NDArray[np.float64]) -> tuple[float, float]:
    """Draw the histogram; return where it begins and the least density that the axes show."""
    known = eigenvalues[eigenvalues > NUMERICALLY_ZERO * eigenvalues.max()]
    drawn = known[known >= np.quantile(known, _NOT_DRAWN, method="lower")]
    edges, heights = (part.numpy() for part in spectral_density(torch.from_numpy(drawn)))
    heights = heights * (drawn.size / eigenvalues.size)
    floor = float(heights[heights > 0].min() / 3)
    axes.stairs(
        np.maximum(heights, floor),
        edges,
        baseline=floor,
        fill=True,
        color="tab:blue",
        alpha=0.45,
        label=f"ESD, {eigenvalues.size} eigenvalues",
    )
    axes.set_ylim(bottom=floor)
    return float(edges[0]), floor


def _draw_random_matrix(
    axes: Axes,
    eigenvalues: NDArray[np.float64],
    edges: tuple[float, float] | None,
    threshold: float,
    visible: tuple[float, float],
) -> None:
    """Draw the law and the threshold; `visible` holds the histogram's start and the least density shown."""
    if edges is not None and np.isfinite(edges).all():
        share = np.mean(eigenvalues <= (edges[1] if math.isnan(threshold) else threshold))
        x, y = _marchenko_pastur_curve(*edges, visible[0])
        law = np.maximum(share * y, visible[1])
        axes.plot(x, law, color="tab:purple", linewidth=1.8, label="Marchenko-Pastur law")
    if not math.isnan(threshold):
        label = f"spikes beyond {threshold:.4g}: {np.sum(eigenvalues > threshold)}"
        axes.axvline(threshold, color="tab:purple", linestyle="--", linewidth=1.5, label=label)


def _marchenko_pastur_curve(
    lower: float, upper: float, first: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Points of the law; for a square matrix, whose density is infinite at zero, they begin at `first`."""
    start = lower or min(first, upper / 10)
    x = start * (upper / start) ** (0.5 - 0.5 * np.cos(np.linspace(0, np.pi, 400)))  # dense near the edges
    edges = torch.tensor([lower, upper], dtype=torch.float64)
    return x, marchenko_pastur_density_between(torch.from_numpy(x), *edges).numpy()


def _draw_tail(axes: Axes, eigenvalues: NDArray[np.float64], alpha: float, xmin: float, ks_distance: float) -> None:
    if alpha > 1 and np.isfinite(alpha):
        share = np.mean(eigenvalues >= xmin)
        x = np.logspace(np.log10(xmin), np.log10(max(eigenvalues.max(), xmin)), 100)
        y = share * (alpha - 1) / xmin * (x / xmin) ** -alpha
        label = rf"tail $x^{{-\alpha}}$: $\alpha$ = {alpha:.2f}, D = {ks_distance:.3f}"
        axes.plot(x, y, color="tab:red", linewidth=2, label=label)
    axes.axvline(xmin, color="0.25", linestyle=":", linewidth=1.5, label=f"$x_{{min}}$ = {xmin:.3g}")
