"""An allocation as lines of text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lightning_farms.pruning.ratios import LayerRatio, LayerRatios


def ratio_table(ratios: LayerRatios) -> str:
    """The table, by the block where a block's layers have one score, what was asked and reached, and the notes."""
    blocks: dict[str, list[LayerRatio]] = {}
    for layer in ratios.layers:
        blocks.setdefault(layer.block, []).append(layer)
    if all(len({layer.score for layer in layers}) == 1 for layers in blocks.values()):
        lines = [["block", "layers", "weights", "source", "score", "ratio"]]
        lines += [[block, str(len(layers)), *_cells(layers)] for block, layers in blocks.items()]
    else:
        lines = [["layer", "weights", "source", "score", "ratio"]]
        lines += [[layer.name, *_cells([layer])] for layer in ratios.layers]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    table = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    title = f"{ratios.allocation}: " if ratios.allocation else ""
    total = (
        f"{title}{ratios.sparsity:.6f} of {ratios.size} weights asked, {ratios.reached:.6f} reached "
        f"({ratios.zeros} zeros)."
    )
    return "\n".join([*table, total, *(f"Note: {note}." for note in ratios.notes)])


def _cells(layers: Sequence[LayerRatio]) -> list[str]:
    """Weights, mean figure, score and ratio reached of layers of one score."""
    size = sum(layer.size for layer in layers)
    figures = [layer.source for layer in layers if math.isfinite(layer.source)]
    mean = f"{sum(figures) / len(figures):.3f}" if figures else ""
    return [str(size), mean, f"{layers[0].score:.3f}", f"{sum(layer.zeros for layer in layers) / size:.3f}"]
