"""A heat map of layers by epochs as a small image."""

import functools

import numpy as np
from numpy.typing import NDArray

from lightning_farms.plotting._arrays import Values, as_array

COLOUR_MAP = "viridis"
MISSING = 0.75  # the grey of cells without a value
_LEVELS = 256
_LEAST_SPAN = 1e-6  # least span of the colours, relative to the values; less is rounding


def layer_heatmap_image(
    values: Values, *, vmin: float | None = None, vmax: float | None = None, logarithmic: bool = False
) -> NDArray[np.uint8]:
    """Draw layers by epochs as an image without labels, cheap enough for every epoch.

    Colours run over the viridis map from the least to the greatest value; cells without a finite value (or, on a
    logarithmic scale, a positive one) are grey. Cells are blocks of whole
    pixels, 2 to 24 high, chosen to keep the image near 480 by 360 and, up to 240 layers, hardly higher than wide.

    Args:
        values: (layers, epochs); the first layer becomes the top row.
        vmin: Value of the first colour; None: the least value.
        vmax: Value of the last colour; None: the greatest value.
        logarithmic: Whether colours follow the logarithm.

    Returns:
        (3, height, width), red, green and blue, for ``SummaryWriter.add_image``.

    Raises:
        ValueError: If there is no cell, or vmin is not below vmax.

    Example:
        >>> image = layer_heatmap_image([[1.0, 2.0], [3.0, float("nan")]])
        >>> image.shape, image[:, 0, 0].tolist(), image[:, -1, -1].tolist()
        ((3, 48, 48), [68, 1, 84], [191, 191, 191])
    """
    cells = as_array(values, "values", 2)
    check_cells(cells, vmin, vmax)
    colours = _table()[_levels(cells, vmin, vmax, logarithmic=logarithmic)]
    rows, columns = cells.shape
    height, width = int(np.clip(360 // rows, 2, 24)), int(np.clip(480 // columns, 2, 24))
    width = max(width, min(height * rows, 480) // columns)  # at least square, as TensorBoard widens a strip to its card
    return colours.transpose(2, 0, 1).repeat(height, axis=1).repeat(width, axis=2)


def check_cells(cells: NDArray[np.float64], vmin: float | None, vmax: float | None) -> None:
    """Raise a ValueError for a heat map without cells or with an empty range."""
    if not cells.size:
        raise ValueError(f"Expected argument `values` to have at least one cell, but got shape {cells.shape}.")
    if vmin is not None and vmax is not None and not vmin < vmax:
        raise ValueError(f"Expected argument `vmin` to be below `vmax`, but got {vmin} and {vmax}.")


def is_even(low: float, high: float) -> bool:
    """Whether values between these ends are equal but for rounding, which colours would exaggerate."""
    return not high - low > _LEAST_SPAN * max(abs(low), abs(high))


def _levels(
    cells: NDArray[np.float64], vmin: float | None, vmax: float | None, *, logarithmic: bool
) -> NDArray[np.intp]:
    """Give each cell its row of the colour table; the last row is for cells without a value."""
    usable = np.isfinite(cells) & ((cells > 0) | (not logarithmic))
    levels = np.full(cells.shape, _LEVELS, dtype=np.intp)
    shown = cells[usable]
    if not shown.size:
        return levels
    low, high = shown.min() if vmin is None else vmin, shown.max() if vmax is None else vmax
    if is_even(low, high):
        shown, low, high = np.full(shown.shape, 0.5), 0.0, 1.0
    elif logarithmic:
        shown, low, high = np.log(shown), np.log(low), np.log(high)
    share = (shown - low) / (high - low)
    levels[usable] = np.clip(share * _LEVELS, 0, _LEVELS - 1).astype(np.intp)
    return levels


@functools.cache
def _table() -> NDArray[np.uint8]:
    """Return the map's colours and, last, the grey for missing cells: (levels + 1, 3)."""
    import matplotlib

    colours = matplotlib.colormaps[COLOUR_MAP](np.arange(_LEVELS), bytes=True)[:, :3]
    grey = np.full((1, 3), round(MISSING * 255), dtype=np.uint8)
    table = np.concatenate([colours, grey])
    table.setflags(write=False)
    return table
