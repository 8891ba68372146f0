"""Alpha of each layer over the depth of a network, for one report or for two to compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_farms.plotting._arrays import spans_decades
from lightning_farms.plotting._labels import literal, shortened, thinned, without_middle
from lightning_farms.plotting._margins import Margins, add_axes, name_axes, widest
from lightning_farms.plotting._style import in_plain_style, plain_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_NAME_WIDTH = 40  # characters
_FONT = 9  # font size of the layers' names, in points
_LEGEND = 0.3  # inches
_MOST_ROWS = 45  # with more rows, they are closer together than a mark is high


@in_plain_style
def alpha_depth_figure(
    alphas: Mapping[str, float],
    *,
    before: Mapping[str, float] | None = None,
    intervals: Mapping[str, tuple[float, float]] | None = None,
    title: str = "Alpha over depth",
) -> Figure:
    """Draw each layer's alpha, the first layer at the top, and optionally its earlier alpha.

    Args:
        alphas: Alpha of each layer, in the network's order; layers without a finite alpha keep an empty row.
        before: Earlier alphas, drawn as hollow marks joined to the later ones; layers that `alphas` lacks are left out.
        intervals: Lower and upper end of each layer's interval, drawn as a bar; layers that are missing here, or whose
            ends are not finite, have no bar.
        title: Title of the figure.

    Returns:
        The figure; pyplot does not know it, so it need not be closed.

    Raises:
        ValueError: If there is no layer.

    Example:
        >>> figure = alpha_depth_figure({"conv": 2.1, "fc": 3.4}, before={"fc": 2.9})
        >>> [text.get_text() for text in figure.legends[0].get_texts()]
        ['before', 'now', 'mean 2.75']
    """
    if not alphas:
        raise ValueError("Expected argument `alphas` to be at least one layer's alpha, but got none.")
    figure, names = _figure(7.2, len(alphas)), list(alphas)
    rows = _labelled(names)
    margins = Margins(left=0.42 + widest(rows.values(), _FONT), right=0.22, bottom=0.84, top=0.4)
    axes = add_axes(figure, margins)
    _label_layers(axes, rows, len(names))
    now, earlier = _values(alphas, names), _values(before or {}, names)
    if spans_decades(now, earlier):
        axes.set_xscale("log")
    if before:
        _draw_earlier(axes, earlier, now, "before")
    if intervals:
        _draw_intervals(axes, intervals, names)
    _draw_alphas(axes, now, "now" if before else r"$\alpha$")
    name_axes(axes, margins, title=shortened(title, 62), horizontal="alpha", vertical="layer", legend=_LEGEND)
    _draw_legend(figure, axes, "lower center", len(names))
    return figure


@in_plain_style
def comparison_figure(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    labels: tuple[str, str] = ("before", "after"),
    title: str = "Alpha over depth",
) -> Figure:
    r"""Draw each layer's alpha in two reports, the first layer at the top, and the difference beside it.

    Args:
        before: Alpha of each layer in one report.
        after: Alpha of each layer in the other report. It gives the order of the rows; layers that only `before` has
            follow. Layers without a finite alpha in both have no difference.
        labels: Names of the two reports.
        title: Title of the figure.

    Returns:
        The figure; pyplot does not know it, so it need not be closed.

    Raises:
        ValueError: If there is no layer.

    Example:
        >>> figure = comparison_figure({"conv": 2.0, "fc": 4.0}, {"conv": 2.5, "fc": 3.0})
        >>> [float(bar.get_width()) for bar in figure.axes[1].patches], figure.axes[1].get_xlabel()
        ([0.5, -1.0], '$\\Delta\\alpha$, mean -0.25')
    """
    names = list(after) + [name for name in before if name not in after]
    if not names:
        raise ValueError("Expected arguments `before` and `after` to have at least one layer's alpha, but got none.")
    figure = _figure(9.0, len(names))
    figure.set_layout_engine("constrained")
    axes, beside = figure.subplots(1, 2, sharey=True, width_ratios=(2.2, 1))
    _label_layers(axes, _labelled(names), len(names))
    axes.set_xlabel(r"$\alpha$", fontsize=12)
    axes.set_ylabel("layer", fontsize=11)
    earlier, now = _values(before, names), _values(after, names)
    if spans_decades(now, earlier):
        axes.set_xscale("log")
    first, second = (literal(without_middle(label, _NAME_WIDTH)) for label in labels)
    _draw_earlier(axes, earlier, now, first)
    _draw_alphas(axes, now, second)
    _draw_differences(beside, now - earlier)
    figure.suptitle(shortened(title, 76), fontsize=12, parse_math=False)
    _draw_legend(figure, axes, "outside lower center", len(names))
    return figure


def _figure(width: float, layers: int) -> Figure:
    return plain_figure(width, _height(layers))


def _height(layers: int) -> float:
    return float(np.clip(1.5 + 0.24 * layers, 3.0, 11.0))


def _values(alphas: Mapping[str, float], names: Sequence[str]) -> NDArray[np.float64]:
    return np.array([alphas.get(name, np.nan) for name in names], dtype=np.float64)


def _labelled(names: Sequence[str]) -> dict[int, str]:
    """Rows that get a label, with the label of each."""
    return {row: shortened(names[row], _NAME_WIDTH) for row in thinned(len(names), int(_height(len(names)) / 0.19))}


def _label_layers(axes: Axes, rows: Mapping[int, str], layers: int) -> None:
    axes.set_yticks(list(rows), list(rows.values()), fontsize=_FONT, parse_math=False)
    axes.set_ylim(layers - 0.4, -0.6)
    axes.grid(visible=True, axis="both", alpha=0.25)


def _shrink(rows: int) -> float:
    """Factor on the size of marks that keeps those of neighbouring rows apart."""
    return min(1.0, _MOST_ROWS / rows)


def _draw_earlier(axes: Axes, earlier: NDArray[np.float64], now: NDArray[np.float64], label: str) -> None:
    depth, shrink = np.arange(len(now)), _shrink(len(now))
    axes.hlines(depth, earlier, now, color="0.6", linewidth=1.5 * shrink, zorder=1)
    axes.scatter(
        earlier,
        depth,
        s=26 * shrink,
        facecolor="white",
        edgecolor="tab:blue",
        linewidth=1.5 * shrink**0.5,
        zorder=2,
        label=label,
    )


def _draw_intervals(axes: Axes, intervals: Mapping[str, tuple[float, float]], names: Sequence[str]) -> None:
    ends = np.array([intervals.get(name, (np.nan, np.nan)) for name in names], dtype=np.float64)
    depth, shrink = np.arange(len(names)), _shrink(len(names))
    axes.hlines(
        depth, *ends.T, color="tab:blue", alpha=0.45, linewidth=max(1.0, 4 * shrink), zorder=2, label="interval"
    )


def _draw_alphas(axes: Axes, now: NDArray[np.float64], label: str) -> None:
    axes.scatter(now, np.arange(len(now)), s=30 * _shrink(len(now)), color="tab:blue", zorder=3, label=label)
    if np.isfinite(now).any():
        mean = float(now[np.isfinite(now)].mean())
        axes.axvline(
            mean,
            color="tab:red",
            linestyle="--",
            linewidth=1.2,
            zorder=0,
            label=f"mean {mean:.2f}" if abs(mean) < 1e4 else f"mean {mean:.3g}",
        )


def _draw_differences(axes: Axes, differences: NDArray[np.float64]) -> None:
    finite = np.isfinite(differences)
    rows = np.flatnonzero(finite)
    colours = np.where(differences[rows] > 0, "tab:red", "tab:blue")
    axes.barh(rows, differences[rows], height=0.7, color=colours)
    axes.axvline(0.0, color="0.3", linewidth=1)
    mean = f", mean {differences[finite].mean():+.2g}" if finite.any() else ""
    axes.set_xlabel(rf"$\Delta\alpha${mean}", fontsize=12)
    axes.locator_params("x", nbins=4)
    axes.grid(visible=True, axis="both", alpha=0.25)


def _draw_legend(figure: Figure, axes: Axes, place: Literal["lower center", "outside lower center"], rows: int) -> None:
    marks = _shrink(rows) ** -0.5  # as large as if there were few rows
    figure.legend(*axes.get_legend_handles_labels(), loc=place, ncols=4, fontsize=9, frameon=False, markerscale=marks)
