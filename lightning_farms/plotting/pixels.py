"""Conversion of figures to arrays of pixels."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def pixels(figure: Figure) -> NDArray[np.uint8]:
    """Draw a figure to an array of pixels, without pyplot.

    Args:
        figure: The figure.

    Returns:
        (height, width, 3), red, green and blue.

    Example:
        >>> from matplotlib.figure import Figure
        >>> pixels(Figure(figsize=(3, 2), dpi=100)).shape
        (200, 300, 3)
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
