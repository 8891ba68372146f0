"""A heat map of layers by epochs as a labelled figure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import NDArray

from lightning_farms.plotting._arrays import Values, as_array
from lightning_farms.plotting._labels import shortened, thinned
from lightning_farms.plotting._margins import Margins, add_axes, name_axes, widest
from lightning_farms.plotting._style import in_plain_style, plain_figure
from lightning_farms.plotting.layer_heatmap_image import COLOUR_MAP, MISSING, check_cells, is_even

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Normalize
    from matplotlib.figure import Figure
    from matplotlib.image import AxesImage

_FONT = 9  # font size of the tick labels, in points
_GAP, _BAR = 0.12, 0.18  # inches, gap before the colour bar, and its width


@in_plain_style
def layer_heatmap_figure(
    values: Values,
    *,
    layers: Sequence[str],
    epochs: Sequence[int],
    title: str,
    label: str,
    unit: Literal["epoch", "step"] = "epoch",
    vmin: float | None = None,
    vmax: float | None = None,
    logarithmic: bool = False,
) -> Figure:
    """Draw layers by epochs as a heat map with labelled axes and a colour bar.

    The figure grows with the number of layers and epochs up to a limit, beyond which only some are labelled. Cells
    without a finite value (or, on a logarithmic scale, a positive one) are grey.

    Args:
        values: (layers, epochs); the first layer is the top row.
        layers: Name of each layer.
        epochs: Number of each epoch, or of each step.
        title: Title of the figure.
        label: Quantity that the colours show, with its unit.
        unit: Unit of the columns.
        vmin: Value of the first colour; None: the least value.
        vmax: Value of the last colour; None: the greatest value.
        logarithmic: Whether colours follow the logarithm.

    Returns:
        The figure; pyplot does not know it, so it need not be closed.

    Raises:
        ValueError: If there is no cell, the names do not fit the values, or vmin is not below vmax.

    Example:
        >>> figure = layer_heatmap_figure(
        ...     [[2.0, 2.5], [3.0, float("nan")]], layers=["conv", "fc"], epochs=[0, 1], title="Alpha", label="alpha"
        ... )
        >>> [axis.get_ylabel() for axis in figure.axes]
        ['layer', 'alpha']
    """
    cells = as_array(values, "values", 2)
    check_cells(cells, vmin, vmax)
    if cells.shape != (len(layers), len(epochs)):
        raise ValueError(
            f"Expected argument `values` to have one row a layer and one column an epoch, ({len(layers)},"
            f" {len(epochs)}), but got shape {cells.shape}."
        )
    width, height = np.clip(4.2 + 0.12 * len(epochs), 6.4, 13.0), np.clip(1.6 + 0.21 * len(layers), 3.2, 10.5)
    figure = plain_figure(width, height)
    labels = {row: shortened(layers[row]) for row in thinned(len(layers), int(height / 0.19))}
    margins = Margins(
        left=0.42 + widest(labels.values(), _FONT), right=1.5 if logarithmic else 1.15, bottom=0.56, top=0.4
    )
    axes = add_axes(figure, margins)
    shown = np.ma.masked_where(~np.isfinite(cells) | (logarithmic & (cells <= 0)), cells)
    axes.set_facecolor(str(MISSING))  # masked cells are transparent
    norm = _norm(shown, vmin, vmax, logarithmic=logarithmic)
    image = axes.imshow(shown, cmap=COLOUR_MAP, norm=norm, aspect="auto", interpolation="nearest")
    axes.set_yticks(list(labels), list(labels.values()), fontsize=_FONT, parse_math=False)
    numbers = [str(epoch) for epoch in epochs]
    room = (width - margins.left - margins.right) / (widest(numbers, _FONT) + 0.12)
    columns = thinned(len(numbers), max(1, min(14, int(room))))
    axes.set_xticks(columns, [numbers[column] for column in columns], fontsize=_FONT)
    name_axes(axes, margins, title=shortened(title, 56), horizontal=unit, vertical="layer")
    _add_colour_bar(figure, axes, image, label, margins.right)
    if np.ma.is_masked(shown):
        _explain_grey(figure, cells[shown.mask])
    return figure


def _add_colour_bar(figure: Figure, axes: Axes, image: AxesImage, label: str, room: float) -> None:
    box, width = axes.get_position(), figure.get_size_inches()[0]
    bar = figure.add_axes((box.x1 + _GAP / width, box.y0, _BAR / width, box.height))
    figure.colorbar(image, cax=bar).ax.tick_params(labelsize=_FONT, which="both")
    bar.set_ylabel(shortened(label, 26), fontsize=11, va="center")
    bar.yaxis.set_label_coords((room - _GAP - 0.12) / _BAR, 0.5)


def _norm(cells: NDArray[np.float64], vmin: float | None, vmax: float | None, *, logarithmic: bool) -> Normalize:
    from matplotlib.colors import LogNorm, Normalize

    compressed = np.ma.compressed(cells)
    least, greatest = (compressed.min(), compressed.max()) if compressed.size else (1.0, 1.0)
    low, high = least if vmin is None else vmin, greatest if vmax is None else vmax
    if is_even(low, high):  # one value: the middle of the map, in a range that the colour bar can label
        low, high = (
            (low / 1.05, low * 1.05) if logarithmic else (low - 0.05 * abs(low or 1), low + 0.05 * abs(low or 1))
        )
    return (LogNorm if logarithmic else Normalize)(low, high)


def _explain_grey(figure: Figure, cells: NDArray[np.float64]) -> None:
    """Explain the grey cells; on a logarithmic scale these include rates of zero, as a cosine schedule ends with."""
    from matplotlib.patches import Patch

    label = "no value"
    if np.isfinite(cells).any():
        label = "no value, or none above 0" if cells.any() else "zero"
    grey = Patch(facecolor=str(MISSING), edgecolor="0.4", label=label)
    figure.legend(handles=[grey], loc="lower right", fontsize=9, frameon=False)
