"""Formatting of an allocation as a table of text."""

from __future__ import annotations

import math
from collections.abc import Sequence

from lightning_farms.pruning.layer_ratio import LayerRatio


def ratio_table(layers: Sequence[LayerRatio]) -> list[str]:
    """The lines of the table: one per block if all layers of a block have the same score, otherwise one per layer."""
    blocks: dict[str, list[LayerRatio]] = {}
    for layer in layers:
        blocks.setdefault(layer.block, []).append(layer)
    if all(len({layer.score for layer in block}) == 1 for block in blocks.values()):
        lines = [["block", "layers", "weights", "source", "score", "ratio"]]
        lines += [[name, str(len(block)), *_cells(block)] for name, block in blocks.items()]
    else:
        lines = [["layer", "weights", "source", "score", "ratio"]]
        lines += [[layer.name, *_cells([layer])] for layer in layers]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]


def _cells(layers: Sequence[LayerRatio]) -> list[str]:
    """Number of weights, mean figure, score and reached ratio of layers with the same score."""
    size = sum(layer.size for layer in layers)
    figures = [layer.source for layer in layers if math.isfinite(layer.source)]
    mean = f"{sum(figures) / len(figures):.3f}" if figures else ""
    return [str(size), mean, f"{layers[0].score:.3f}", f"{sum(layer.zeros for layer in layers) / size:.3f}"]
