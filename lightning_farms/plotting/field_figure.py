"""A predicted field beside the true one, frame by frame."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from lightning_farms.plotting._arrays import Values, as_array
from lightning_farms.plotting._labels import shortened
from lightning_farms.plotting._style import in_plain_style, plain_figure
from lightning_farms.plotting.layer_heatmap_image import COLOUR_MAP, MISSING, is_even

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.colors import Colormap, Normalize
    from matplotlib.figure import Figure

_Extend: TypeAlias = Literal["neither", "min", "max", "both"]

_ERROR_MAP = "RdBu_r"
_PANELS, _LEAST, _MOST = 9.4, 1.2, 2.1  # inches: width of a row of panels, and least and greatest width of one
_GAP, _ROW_GAP = 0.07, 0.1  # inches between panels and between rows
_LEFT, _RIGHT, _TOP, _BOTTOM = 0.62, 1.05, 0.48, 0.32  # inches around the panels
_LINE = 0.19  # inches, height of a line of the columns' names
_BAR = 0.16  # inches, width of a colour bar
_FONT = 10


class _Grid(NamedTuple):
    """Sizes of one panel and of the figure, in inches."""

    panel: tuple[float, float]
    figure: tuple[float, float]


@in_plain_style
def field_figure(truth: Values, prediction: Values, *, frames: Sequence[str], title: str = "Rollout") -> Figure:
    r"""Draw a true field, the predicted one and their difference, one column per frame, x rightwards and y upwards.

    The colours of truth and prediction span the truth's range; predictions beyond it get the colour of its nearer end,
    and the colour bar ends in an arrow. The error's colours are symmetric about zero. Below each error is the relative
    error :math:`\|\text{prediction} - \text{truth}\|_2 / \|\text{truth}\|_2` of that frame. Cells that are not finite
    are grey.

    Args:
        truth: (X, Y, frames), the true field.
        prediction: The predicted field, of the same shape.
        frames: Text above each column.
        title: Title of the figure.

    Returns:
        The figure; pyplot does not know it, so it need not be closed.

    Raises:
        ValueError: If the shapes disagree, there is nothing to draw, or there is not one name per frame.

    Example:
        >>> import torch
        >>> truth = torch.ones(8, 8, 2)
        >>> figure = field_figure(truth, 1.1 * truth, frames=["frame 10", "frame 20"], title="density")
        >>> [text.get_text() for text in figure.axes[2].texts[1:]]
        ['rel. L2 0.1', 'rel. L2 0.1']
    """
    true, predicted = as_array(truth, "truth", 3), as_array(prediction, "prediction", 3)
    _check(true, predicted, frames)
    with np.errstate(invalid="ignore", over="ignore"):
        error = predicted - true
    grid = _grid(true.shape, lines=max(name.count("\n") + 1 for name in frames))
    figure = plain_figure(*grid.figure)
    axes = [_row_axes(figure, grid, row, name) for row, name in enumerate(("truth", "prediction", "error"))]
    fields, errors = _field_colours(true), _error_colours(error)
    for row, values, colours in zip(axes, (true, predicted, error), (fields, fields, errors), strict=True):
        _draw_row(row, values, grid, *colours)
    _label_columns(axes[0], grid, frames)
    _label_errors(axes[2], grid, _relative_errors(true, error))
    place = (_LEFT / grid.figure[0], 1 - 0.1 / grid.figure[1])
    figure.text(*place, shortened(title, int(grid.figure[0] / 0.095)), fontsize=12, va="top", parse_math=False)
    _add_bar(figure, (axes[1], axes[0]), fields, extend=_extension(predicted, fields[0]))
    _add_bar(figure, (axes[2], axes[2]), errors, extend="neither")
    return figure


def _check(truth: NDArray[np.float64], prediction: NDArray[np.float64], frames: Sequence[str]) -> None:
    if truth.shape != prediction.shape:
        raise ValueError(
            f"Expected argument `prediction` to have the shape of `truth`, {truth.shape}, but got {prediction.shape}."
        )
    if not truth.size:
        raise ValueError(f"Expected argument `truth` to have cells and frames, but got shape {truth.shape}.")
    if len(frames) != truth.shape[2]:
        raise ValueError(f"Expected argument `frames` to be {truth.shape[2]} name(s), but got {len(frames)}.")


def _grid(shape: tuple[int, ...], *, lines: int) -> _Grid:
    """Sizes of panels whose cells are squares, unless the field is much longer than wide."""
    x, y, columns = shape
    width = float(np.clip(_PANELS / columns, _LEAST, _MOST))
    height = float(np.clip(width * y / x, 0.9, 3.2))
    return _Grid(
        (width, height),
        (
            _LEFT + columns * width + (columns - 1) * _GAP + _RIGHT,
            _TOP + lines * _LINE + 3 * height + 2 * _ROW_GAP + _BOTTOM,
        ),
    )


def _row_axes(figure: Figure, grid: _Grid, row: int, name: str) -> Axes:
    """Add one axes, in inches, for all panels of a row: one axes per panel would take five times as long to draw."""
    (_, height), (width, total) = grid
    row_width = width - _LEFT - _RIGHT
    bottom = _BOTTOM + (2 - row) * (height + _ROW_GAP)
    axes = figure.add_axes((_LEFT / width, bottom / total, row_width / width, height / total))
    axes.set_axis_off()
    axes.set_xlim(0, row_width)
    axes.set_ylim(0, height)
    axes.text(-0.14, height / 2, name, rotation=90, ha="right", va="center", fontsize=11)
    return axes


def _left(grid: _Grid, column: int) -> float:
    return column * (grid.panel[0] + _GAP)


def _draw_row(axes: Axes, values: NDArray[np.float64], grid: _Grid, norm: Normalize, colours: Colormap) -> None:
    width, height = grid.panel
    limits = axes.get_xlim(), axes.get_ylim()
    for column in range(values.shape[2]):
        cells = np.ma.masked_invalid(values[:, :, column].T)
        left = _left(grid, column)
        axes.imshow(
            cells, cmap=colours, norm=norm, origin="lower", extent=(left, left + width, 0, height), aspect="auto"
        )
    axes.set(xlim=limits[0], ylim=limits[1])


def _label_columns(axes: Axes, grid: _Grid, frames: Sequence[str]) -> None:
    width, height = grid.panel
    for column, name in enumerate(frames):
        axes.text(
            _left(grid, column) + width / 2,
            height + 0.06,
            name,
            ha="center",
            va="bottom",
            fontsize=_FONT,
            parse_math=False,
        )


def _label_errors(axes: Axes, grid: _Grid, errors: Sequence[float]) -> None:
    for column, error in enumerate(errors):
        axes.text(
            _left(grid, column) + grid.panel[0] / 2,
            -0.07,
            f"rel. L2 {error:.3g}" if math.isfinite(error) else "rel. L2 not finite",
            ha="center",
            va="top",
            fontsize=9,
        )


def _relative_errors(truth: NDArray[np.float64], error: NDArray[np.float64]) -> list[float]:
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        relative = np.linalg.norm(error, axis=(0, 1)) / np.linalg.norm(truth, axis=(0, 1))
    return [float(value) for value in relative]


def _field_colours(truth: NDArray[np.float64]) -> tuple[Normalize, Colormap]:
    """Colours over the truth's range; for a constant, over a range around it that the colour bar can label."""
    from matplotlib.colors import Normalize

    finite = truth[np.isfinite(truth)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if is_even(low, high):
        low, high = low - 0.05 * abs(low or 1), high + 0.05 * abs(high or 1)
    return Normalize(low, high), _colour_map(COLOUR_MAP)


def _error_colours(error: NDArray[np.float64]) -> tuple[Normalize, Colormap]:
    from matplotlib.colors import Normalize

    finite = np.abs(error[np.isfinite(error)])
    most = (float(finite.max()) if finite.size else 0.0) or 1.0
    return Normalize(-most, most), _colour_map(_ERROR_MAP)


def _colour_map(name: str) -> Colormap:
    from matplotlib import colormaps

    return colormaps[name].with_extremes(bad=str(MISSING))


def _extension(prediction: NDArray[np.float64], norm: Normalize) -> _Extend:
    """The ends of the colour bar that the prediction goes beyond."""
    assert norm.vmin is not None
    assert norm.vmax is not None
    finite = prediction[np.isfinite(prediction)]
    below, above = bool((finite < norm.vmin).any()), bool((finite > norm.vmax).any())
    if below and above:
        return "both"
    if below:
        return "min"
    return "max" if above else "neither"


def _add_bar(figure: Figure, rows: tuple[Axes, Axes], colours: tuple[Normalize, Colormap], *, extend: _Extend) -> None:
    """Add a colour bar beside the rows, from the lower to the upper one."""
    from matplotlib.cm import ScalarMappable
    from matplotlib.ticker import MaxNLocator

    lower, upper = (axes.get_position() for axes in rows)
    box = (lower.x1 + 0.12 / figure.get_figwidth(), lower.y0, _BAR / figure.get_figwidth(), upper.y1 - lower.y0)
    ticks = MaxNLocator(6, prune="both")  # ticks at the ends would touch those of the other bar
    bar = figure.colorbar(ScalarMappable(*colours), cax=figure.add_axes(box), extend=extend, ticks=ticks)
    bar.ax.tick_params(labelsize=9)
    bar.ax.yaxis.get_offset_text().set_fontsize(9)
