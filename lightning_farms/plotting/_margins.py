"""Axes with margins that are known beforehand, because measuring them would take a third of the drawing time."""

from __future__ import annotations

import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_LABEL_SIZE = 11  # font size of the axes' names, in points
_TITLE_SIZE = 12
_POINTS = 72  # points per inch
_SLACK = 1.04  # factor on widths, since hinting rounds glyphs to whole pixels
_UNKNOWN = 1.0  # width of a character that the font lacks, relative to the font size


class Margins(NamedTuple):
    """Room around axes, in inches."""

    left: float
    right: float
    bottom: float
    top: float


def add_axes(figure: Figure, margins: Margins) -> Axes:
    """Add axes with the given margins to a figure."""
    width, height = figure.get_size_inches()
    size = (1 - (margins.left + margins.right) / width, 1 - (margins.bottom + margins.top) / height)
    return figure.add_axes((margins.left / width, margins.bottom / height, *size))


def name_axes(axes: Axes, margins: Margins, *, title: str, horizontal: str, vertical: str, legend: float = 0.0) -> None:
    """Write a title and the names of the axes at fixed places, so that nothing has to be measured to find them."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    box = axes.get_position()
    width, height = figure.get_size_inches()
    name = _LABEL_SIZE / _POINTS
    half = min(widest([title], _TITLE_SIZE), width) / 2
    middle = min(max((box.x0 + box.x1) / 2 * width, half), width - half)  # the axes' middle, or as near as possible
    place = (middle / width - box.x0) / box.width
    axes.set_title(title, fontsize=_TITLE_SIZE, parse_math=False, x=place, y=1.0, pad=7)
    axes.set_xlabel(horizontal, fontsize=_LABEL_SIZE, va="bottom")
    axes.xaxis.set_label_coords(0.5, (legend + 0.06 - margins.bottom) / (box.height * height))
    axes.set_ylabel(vertical, fontsize=_LABEL_SIZE, va="center")
    axes.yaxis.set_label_coords((0.06 + name / 2 - margins.left) / (box.width * width), 0.5)


def widest(texts: Iterable[str], size: float) -> float:
    """Width of the widest text, in inches."""
    return max((sum(map(_advance, text)) for text in texts), default=0.0) * size / _POINTS * _SLACK


@functools.cache
def _advance(character: str) -> float:
    """Horizontal advance of a character at font size 1."""
    from matplotlib.font_manager import FontProperties, findfont, get_font

    font = get_font(findfont(FontProperties()))
    if not font.get_char_index(ord(character)):
        return _UNKNOWN
    font.set_size(100, _POINTS)
    return float(font.load_char(ord(character)).linearHoriAdvance) / 65536 / 100
