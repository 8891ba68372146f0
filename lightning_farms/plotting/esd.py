"""The spectral density of one matrix with its fitted tail."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_farms.plotting.arrays import Values, as_array

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NUMERICALLY_ZERO = 1e-12  # of the largest eigenvalue


def esd_figure(eigenvalues: Values, *, alpha: float, xmin: float, ks_distance: float, title: str) -> Figure:
    r"""Draw an empirical spectral density on logarithmic axes, and the power law fitted to its tail.

    .. math:: \rho(x) = s \, \frac{\alpha - 1}{x_{min}} \left(\frac{x}{x_{min}}\right)^{-\alpha},
        \quad x \ge x_{min}, \quad s = \#\{\lambda \ge x_{min}\} / N

    The tail has the mass that the eigenvalues have there, so that a good fit lies on the density. Eigenvalues below
    1e-12 of the largest count in N but are not drawn; those that are not finite are dropped.

    Args:
        eigenvalues: (N,), in units of the squared weight, in any order.
        alpha: Exponent of the tail; the tail is drawn if it is above 1 and `xmin` is positive.
        xmin: Where the tail begins, in units of the squared weight.
        ks_distance: Kolmogorov-Smirnov distance of tail and eigenvalues, for the legend.
        title: Title of the figure, e.g. the layer's name.

    Returns:
        The figure, unknown to pyplot: nothing has to be closed.

    Raises:
        ValueError: If no eigenvalue is positive and finite.

    Example:
        >>> figure = esd_figure([1.0, 2.0, 4.0, 8.0], alpha=2.0, xmin=2.0, ks_distance=0.1, title="fc")
        >>> [line.get_label() for line in figure.axes[0].get_lines()]
        ['tail $x^{-\\alpha}$: $\\alpha$ = 2.00, D = 0.100', '$x_{min}$ = 2']
    """
    from matplotlib.figure import Figure

    array = as_array(eigenvalues, "eigenvalues", 1)
    finite = array[np.isfinite(array)]
    if not (finite > 0).any():
        raise ValueError(
            f"Expected argument `eigenvalues` to have a positive finite value, but got none among {array.size}."
        )
    figure = Figure(figsize=(6.4, 4.4), dpi=110, layout="constrained")
    axes = figure.add_subplot()
    axes.set_xscale("log")
    axes.set_yscale("log")
    _draw_density(axes, finite)
    if xmin > 0 and np.isfinite(xmin):
        if alpha > 1 and np.isfinite(alpha):
            _draw_tail(axes, finite, alpha, xmin, ks_distance)
        axes.axvline(xmin, color="0.25", linestyle=":", linewidth=1.5, label=f"$x_{{min}}$ = {xmin:.3g}")
    axes.set_xlabel(r"eigenvalue $\lambda$ of $W^\top W$", fontsize=11)
    axes.set_ylabel("density", fontsize=11)
    axes.set_title(title, fontsize=12)
    axes.legend(fontsize=9, loc="best")
    axes.grid(visible=True, which="major", alpha=0.25)
    return figure


def density(eigenvalues: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Estimate a density by a histogram with bins of equal width in the logarithm.

    Args:
        eigenvalues: (N,), finite, at least one of them positive.

    Returns:
        The bins' edges (B + 1,) and the density in each bin (B,), whose integral is the share of the eigenvalues that
        are not numerically zero.
    """
    drawn = eigenvalues[eigenvalues > _NUMERICALLY_ZERO * eigenvalues.max()]
    low, high = drawn.min(), drawn.max()
    if low == high:
        low, high = low / 1.1, high * 1.1
    edges = np.logspace(np.log10(low), np.log10(high), int(np.clip(2 * np.sqrt(drawn.size), 8, 64)) + 1)
    edges[0], edges[-1] = low, high
    counts, _ = np.histogram(drawn, edges)
    return edges, counts / (eigenvalues.size * np.diff(edges))


def _draw_density(axes: Axes, eigenvalues: NDArray[np.float64]) -> None:
    edges, heights = density(eigenvalues)
    floor = heights[heights > 0].min() / 3
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


def _draw_tail(axes: Axes, eigenvalues: NDArray[np.float64], alpha: float, xmin: float, ks_distance: float) -> None:
    share = np.mean(eigenvalues >= xmin)
    x = np.logspace(np.log10(xmin), np.log10(max(eigenvalues.max(), xmin)), 100)
    y = share * (alpha - 1) / xmin * (x / xmin) ** -alpha
    label = rf"tail $x^{{-\alpha}}$: $\alpha$ = {alpha:.2f}, D = {ks_distance:.3f}"
    axes.plot(x, y, color="tab:red", linewidth=2, label=label)
