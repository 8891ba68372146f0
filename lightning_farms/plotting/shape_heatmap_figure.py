"""A map of alpha by the shape of the layers' matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from lightning_farms.plotting._labels import shortened
from lightning_farms.plotting._style import in_plain_style, plain_figure
from lightning_farms.plotting.layer_heatmap_image import COLOUR_MAP, MISSING

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LEAST_SPAN = 0.3  # least span of alpha over the colours
_MOST_SIZES = 12  # sizes on an axis; if there are more, they are grouped by powers of two


class _Grid(NamedTuple):
    """Cells of the map: labels of rows and columns, and mean alpha and number of layers of each (row, column)."""

    rows: list[str]
    columns: list[str]
    mean: NDArray[np.float64]
    layers: NDArray[np.int64]


@in_plain_style
def shape_heatmap_figure(
    shapes: Mapping[str, tuple[int, int]],
    alphas: Mapping[str, float],
    *,
    title: str = "Alpha by the shape of the matrix",
) -> Figure:
    r"""Draw the mean alpha of the layers whose matrices have the same size m x n, and the number of these layers.

    Colours that follow the distance from the diagonal show the aspect-ratio bias: alpha then reflects the shape rather
    than the training. The colours span at least 0.3, so that an even network looks even. The line below the map gives
    the correlation of alpha and :math:`|\log_2 (m / n)|` over layers. If an axis has more than 12 sizes, they are
    grouped by powers of two. Cells whose layers have no finite alpha are grey.

    Args:
        shapes: Rows and columns (m, n) of each layer's matrices, at least 1.
        alphas: Alpha of each layer; layers that are missing here count as having no alpha.
        title: Title of the figure.

    Returns:
        The figure; pyplot does not know it, so it need not be closed.

    Raises:
        ValueError: If there is no layer, or a shape does not consist of two sizes of at least 1.

    Example:
        >>> figure = shape_heatmap_figure({"a": (64, 32), "b": (64, 32), "c": (32, 32)}, {"a": 3.0, "b": 4.0, "c": 2.0})
        >>> [text.get_text() for text in figure.axes[0].texts]
        ['2.00\n×1', '3.50\n×2']
    """
    _check_shapes(shapes)
    values = np.array([alphas.get(name, np.nan) for name in shapes], dtype=np.float64)
    sizes = np.array(list(shapes.values()), dtype=np.int64)
    grid = _gather(sizes, values)
    width, height = 2.9 + 0.62 * len(grid.columns), 2.2 + 0.48 * len(grid.rows)
    figure = plain_figure(max(6.2, width), max(3.6, height))
    figure.set_layout_engine("constrained")
    axes = figure.add_subplot()
    low, high = _colour_range(grid.mean)
    image = axes.imshow(grid.mean, vmin=low, vmax=high, cmap=COLOUR_MAP, aspect="auto", interpolation="nearest")
    figure.colorbar(image, ax=axes, pad=0.02).set_label(r"mean $\alpha$", fontsize=11)
    _fill_cells(axes, grid, (low + high) / 2)
    axes.set_xlabel("columns n", fontsize=11)
    axes.set_ylabel("rows m", fontsize=11)
    figure.suptitle(shortened(title, 56), fontsize=12, parse_math=False)
    figure.supxlabel(_bias(sizes, values), fontsize=9)
    return figure


def _check_shapes(shapes: Mapping[str, tuple[int, int]]) -> None:
    if not shapes:
        raise ValueError("Expected argument `shapes` to have at least one layer, but got none.")
    for name, shape in shapes.items():
        if len(shape) != 2 or min(shape) < 1:
            raise ValueError(
                f"Expected argument `shapes` to be two sizes of at least 1 a layer, but got {shape} for {name!r}."
            )


def _gather(sizes: NDArray[np.int64], alphas: NDArray[np.float64]) -> _Grid:
    (rows, row_of), (columns, column_of) = (_categories(sizes[:, axis]) for axis in (0, 1))
    count = np.zeros((len(rows), len(columns)), dtype=np.int64)
    np.add.at(count, (row_of, column_of), 1)
    finite = np.isfinite(alphas)
    total, known = np.zeros(count.shape), np.zeros(count.shape)
    np.add.at(total, (row_of[finite], column_of[finite]), alphas[finite])
    np.add.at(known, (row_of[finite], column_of[finite]), 1)
    return _Grid(rows, columns, np.where(known > 0, total / np.maximum(known, 1), np.nan), count)


def _categories(sizes: NDArray[np.int64]) -> tuple[list[str], NDArray[np.intp]]:
    """Labels in ascending order, and the position of the label that each size belongs to."""
    distinct, position = np.unique(sizes, return_inverse=True)
    if len(distinct) <= _MOST_SIZES:
        return [str(size) for size in distinct], position
    octaves, position = np.unique([int(size).bit_length() - 1 for size in sizes], return_inverse=True)
    return [f"{2**octave}–{2 ** (octave + 1) - 1}" if octave else "1" for octave in octaves.tolist()], position


def _colour_range(mean: NDArray[np.float64]) -> tuple[float, float]:
    """Range of the colours: from the least to the greatest alpha, widened to the least span if necessary."""
    known = mean[np.isfinite(mean)]
    low, high = (float(known.min()), float(known.max())) if known.size else (0.0, 0.0)
    room = max(0.0, _LEAST_SPAN - (high - low)) / 2
    return low - room, high + room


def _fill_cells(axes: Axes, grid: _Grid, middle: float) -> None:
    from matplotlib.patches import Rectangle

    axes.set_xticks(range(len(grid.columns)), grid.columns, fontsize=9, rotation=_rotation(grid.columns))
    axes.set_yticks(range(len(grid.rows)), grid.rows, fontsize=9)
    for row, column in np.argwhere(grid.layers > 0):
        mean, count = grid.mean[row, column], grid.layers[row, column]
        if math.isnan(mean):
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, color=str(MISSING)))
        colour = "white" if mean < middle else "black"
        text = f"{'–' if math.isnan(mean) else f'{mean:.2f}'}\n×{count}"
        axes.text(column, row, text, ha="center", va="center", fontsize=8, color=colour)


def _rotation(labels: Sequence[str]) -> int:
    return 45 if max(map(len, labels)) > 5 else 0


def _bias(sizes: NDArray[np.int64], alphas: NDArray[np.float64]) -> str:
    finite = np.isfinite(alphas)
    aspect, known = np.abs(np.log2(sizes[finite, 0] / sizes[finite, 1])), alphas[finite]
    if len(known) < 3 or np.ptp(aspect) == 0 or np.ptp(known) == 0:
        return r"correlation of $\alpha$ and $|\log_2(m/n)|$: not defined for these layers"
    correlation = np.corrcoef(aspect, known)[0, 1]
    return rf"correlation of $\alpha$ and $|\log_2(m/n)|$ over {len(known)} layers: {correlation:+.2f}"
