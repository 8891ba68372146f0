"""The choice of the tail's start: the KS distance between tail and fit over all candidates for xmin."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch

from lightning_farms.functional.power_law import KSScan, scan_ks
from lightning_farms.plotting._arrays import Values, as_array
from lightning_farms.plotting._labels import label_within_a_decade, shortened
from lightning_farms.plotting._margins import Margins, add_axes, name_axes
from lightning_farms.plotting._style import in_plain_style, plain_figure

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MARGINS = Margins(left=0.82, right=0.75, bottom=1.05, top=0.4)
_LEGEND = 0.48  # inches; two lines
_CANDIDATES = 400
_DISTANCE, _ALPHA, _CHOSEN = "tab:blue", "0.55", "tab:red"


@in_plain_style
def xmin_scan_figure(eigenvalues: Values, *, title: str, xmin: float = math.nan) -> Figure:
    r"""Draw the Kolmogorov-Smirnov distance and alpha over the candidates for the tail's start.

    A clear, deep minimum means that the start of the tail, and so alpha, is well determined. A flat or ragged curve
    means that it is not; alpha is then as uncertain as the grey curve varies over the candidates of about equal
    distance.

    Args:
        eigenvalues: (N,), in units of the squared weight, in any order; those that are not finite are dropped.
        title: Title of the figure, e.g. the layer's name.
        xmin: The chosen candidate, which is marked; NaN: the candidate of least distance. If several blocks of a
            convolution were fitted, their mean xmin is not where the distance of all eigenvalues together is least.

    Returns:
        The figure; pyplot does not know it, so it need not be closed.

    Raises:
        ValueError: If there is no candidate: fewer than two different positive eigenvalues.

    Example:
        >>> figure = xmin_scan_figure([1.0, 2.0, 4.0, 8.0, 9.0], title="fc")
        >>> [line.get_label() for line in figure.axes[0].get_lines()][:2]
        ['KS distance D', '$x_{min}$ = 1: D = 0.264, $\\alpha$ = 1.79, 5 eigenvalues']

    Reference:
        Clauset, Shalizi, Newman, SIAM Review 51 (2009), Section 3.3.
    """
    scan = _scan(eigenvalues)
    figure = plain_figure(6.4, 4.4)
    axes = add_axes(figure, _MARGINS)
    beside = axes.twinx()
    beside.semilogx(scan.xmin, scan.alpha, color=_ALPHA, linewidth=1.2, label=r"$\alpha$ (right)")
    beside.set_ylabel(r"$\alpha$", fontsize=11, color="0.35")
    beside.set_ylim(1.0, _highest(scan))
    axes.set_zorder(beside.get_zorder() + 1)
    axes.patch.set_visible(False)
    axes.semilogx(scan.xmin, scan.ks_distance, color=_DISTANCE, linewidth=1.6, label="KS distance D")
    place = int(scan.ks_distance.argmin() if math.isnan(xmin) else (scan.xmin - xmin).abs().argmin())
    start, alpha, distance, size = (each[place].item() for each in scan)
    marked = start if math.isnan(xmin) else xmin
    label = rf"$x_{{min}}$ = {marked:.3g}: D = {distance:.3f}, $\alpha$ = {alpha:.2f}, {size} eigenvalues"
    axes.axvline(marked, color=_CHOSEN, linestyle=":", linewidth=1.5, label=label)
    axes.plot([start], [distance], "o", color=_CHOSEN, markersize=5, label="_chosen")
    axes.set_ylim(bottom=0.0)
    label_within_a_decade(axes.xaxis)
    axes.grid(visible=True, which="major", alpha=0.25)
    name_axes(
        axes, _MARGINS, title=shortened(title, 56), horizontal=r"candidate for $x_{min}$", vertical="D", legend=_LEGEND
    )
    figure.legend(
        handles=[*axes.get_legend_handles_labels()[0], *beside.get_legend_handles_labels()[0]],
        loc="lower center",
        ncols=2,
        fontsize=9,
        frameon=False,
    )
    return figure


def _scan(eigenvalues: Values) -> KSScan:
    array = torch.from_numpy(as_array(eigenvalues, "eigenvalues", 1))
    finite = array[array.isfinite()]
    scan = scan_ks(finite, candidates=_CANDIDATES) if len(finite) > 1 else None
    if scan is None or not len(scan.xmin):
        raise ValueError(
            f"Expected argument `eigenvalues` to have two different positive values, but got {array.numel()} without."
        )
    return scan


def _highest(scan: KSScan) -> float:
    """Upper end of the axis of alpha, which fits most candidates, since the alphas of the last ones run away."""
    return 1 + 1.3 * (float(scan.alpha.quantile(0.9)) - 1)
