"""The share of each block that is pruned, for one or several allocations of the sparsity."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from lightning_farms.plotting._labels import literal, shortened, thinned
from lightning_farms.plotting._margins import Margins, add_axes, name_axes, widest
from lightning_farms.plotting._style import in_plain_style, plain_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_WIDTHS = (5.0, 11.0)  # inches
_BLOCK = 0.19  # inches of width per block
_HEIGHT = 3.6
_LEGEND = 0.23  # inches per row
_LEGEND_FONT = 9
_HANDLE = 0.5  # inches, width of a line in the legend
_LABEL = 8  # font size of the blocks' names, in points
_NAME_WIDTH = 24  # characters of a block's name
_TEXT_WIDTH = 30  # characters of an allocation's name
_DASHES = ("-", "--", ":", "-.")
_COLOURS = 10  # colours of the cycle, after which other dashes go with them


@in_plain_style
def sparsity_figure(
    allocations: Mapping[str, Mapping[str, float]], *, sparsity: float | None = None, title: str = "Sparsity by block"
) -> Figure:
    """Draw the ratio of each block's weights that is pruned, as bars, or as overlaid steps for several allocations.

    Args:
        allocations: Name of each allocation, and its ratio in [0, 1] for each block (or layer), in the network's
            order. The axis follows the order of the first allocation; blocks that only later ones have come last.
            Blocks without a finite ratio leave gaps.
        sparsity: The ratio of all weights, drawn as a line.
        title: Title of the figure.

    Returns:
        The figure; pyplot does not know it, so it need not be closed.

    Raises:
        ValueError: There is no allocation or no block, or a ratio is outside [0, 1].

    Example:
        >>> figure = sparsity_figure({"FARMS": {"layers.0": 0.6, "layers.1": 0.8}}, sparsity=0.7)
        >>> [round(float(bar.get_height()), 3) for bar in figure.axes[0].patches]
        [0.6, 0.8]
        >>> [label.get_text() for label in figure.axes[0].get_xticklabels()], figure.axes[0].get_xlabel()
        (['0', '1'], 'layers')

    Reference:
        Hu et al., ICML 2025, Figure 13.
    """
    blocks = list(dict.fromkeys(block for ratios in allocations.values() for block in ratios))
    if not blocks:
        raise ValueError("Expected argument `allocations` to have at least one block's ratio, but got none.")
    values = {label: _ratios(ratios, blocks) for label, ratios in allocations.items()}
    names, axis = _short_names(blocks)
    width = float(np.clip(1.2 + _BLOCK * len(blocks), *_WIDTHS))
    texts = [shortened(label, _TEXT_WIDTH) for label in values] + ([] if sparsity is None else [_line_name(sparsity)])
    columns = max(1, int(width / (widest(texts, _LEGEND_FONT) + _HANDLE)))
    legend = _LEGEND * -(-len(texts) // columns)
    ticks = {place: names[place] for place in thinned(len(names), int(len(names) * _room(width, names)) or 1)}
    figure = plain_figure(width, _HEIGHT + legend)
    margins = Margins(left=0.75, right=0.12, bottom=0.62 + legend, top=0.36)
    axes = add_axes(figure, margins)
    draw = _draw_bars if len(values) == 1 else _draw_steps
    draw(axes, values)
    if sparsity is not None:
        axes.axhline(sparsity, color="0.25", linestyle=(0, (1, 1.5)), linewidth=1.3, label=_line_name(sparsity))
    axes.set_xticks(list(ticks), list(ticks.values()), fontsize=_LABEL, parse_math=False)
    axes.set_xlim(-0.6, len(blocks) - 0.4)
    axes.set_ylim(0, 1.02)
    axes.grid(visible=True, axis="y", alpha=0.25)
    name_axes(axes, margins, title=shortened(title, 70), horizontal=_text(axis), vertical="pruned", legend=legend)
    figure.legend(
        *axes.get_legend_handles_labels(), loc="lower center", ncols=columns, fontsize=_LEGEND_FONT, frameon=False
    )
    return figure


def _ratios(ratios: Mapping[str, float], blocks: Sequence[str]) -> NDArray[np.float64]:
    found = np.array([ratios.get(block, np.nan) for block in blocks], dtype=np.float64)
    if ((found < 0) | (found > 1)).any():
        wrong = found[(found < 0) | (found > 1)][0]
        raise ValueError(f"Expected argument `allocations` to have ratios in [0, 1], but got {wrong}.")
    return found


def _short_names(blocks: Sequence[str]) -> tuple[list[str], str]:
    """Names that tell the blocks apart, and the part that they have in common."""
    parts = [block.split(".") for block in blocks]
    shared = itertools.takewhile(lambda part: len(set(part)) == 1, zip(*(names[:-1] for names in parts), strict=False))
    common = [part[0] for part in shared] if len(blocks) > 1 else []
    return [shortened(".".join(names[len(common) :]), _NAME_WIDTH) for names in parts], ".".join(common) or "block"


def _line_name(sparsity: float) -> str:
    return f"all {sparsity:g}"


def _room(width: float, names: Sequence[str]) -> float:
    """Share of the names that fit beside each other."""
    longest = widest(names, _LABEL) + 0.08
    return min(1.0, (width - 0.9) / longest / len(names))


def _text(label: str) -> str:
    return literal(shortened(label, _TEXT_WIDTH))


def _draw_bars(axes: Axes, values: Mapping[str, NDArray[np.float64]]) -> None:
    for label, ratios in values.items():
        axes.bar(np.arange(len(ratios)), ratios, width=0.8, color="C0", label=_text(label))


def _draw_steps(axes: Axes, values: Mapping[str, NDArray[np.float64]]) -> None:
    for number, (label, ratios) in enumerate(values.items()):
        style, colour = _DASHES[(number + number // _COLOURS) % len(_DASHES)], f"C{number % _COLOURS}"
        edges = np.arange(len(ratios) + 1) - 0.5
        axes.stairs(ratios, edges, baseline=None, linewidth=1.6, color=colour, linestyle=style, label=_text(label))
