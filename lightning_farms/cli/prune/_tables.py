"""The tables that `lightning-farms prune` prints."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from rich.console import Console
from rich.table import Table

from lightning_farms.common.quantities import size_text
from lightning_farms.common.texts import printable
from lightning_farms.pruning.ratios import LayerRatio, LayerRatios
from lightning_farms.pruning.report import PruningReport

_MOST_NOTES = 8
_BAR = 30  # characters for a ratio of 1


def print_ratios(ratios: LayerRatios, console: Console) -> None:
    """Print one line per block: the mean of what its ratio is derived from, and the ratio as a number and a bar."""
    table = Table(
        title=f"Sparsity {ratios.reached:.6g}: {ratios.zeros:,} of {ratios.size:,} weights", title_justify="left"
    )
    for heading in ("block", "source", "ratio", ""):
        table.add_column(heading, justify="right" if heading in ("source", "ratio") else "left", no_wrap=True)
    for block, ratio in ratios.by_block().items():
        source = _mean(layer for layer in ratios.layers if layer.block == block)
        table.add_row(
            printable(block),
            f"{source:.3f}" if math.isfinite(source) else "",
            f"{ratio:.4f}",
            "█" * round(_BAR * ratio),
        )
    console.print(table)
    for note in ratios.notes:
        console.print(printable(f"Note: {note}"))


def print_result(report: PruningReport, out: Path | None, console: Console) -> None:
    """Print what was done, in a few lines."""
    errors = [block.error for block in report.blocks if math.isfinite(block.error)]
    console.print(
        f"Written to {printable(str(out))}: {report.zeros:,} zeros, "
        f"sparsity {report.reached:.6g} (asked {report.ratios.sparsity:g}), {report.method}, {report.seconds:.1f} s"
        + (f", relative error of the blocks' outputs {min(errors):.3f} to {max(errors):.3f}" if errors else "")
        + (f", peak memory {size_text(report.peak_memory)}" if report.peak_memory else ""),
        soft_wrap=True,
    )
    for note in report.notes[:_MOST_NOTES]:
        console.print(printable(f"Note: {note}"), soft_wrap=True)
    if len(report.notes) > _MOST_NOTES:
        console.print(f"Note: {len(report.notes) - _MOST_NOTES} more notes are in its pruning_report.csv")


def _mean(layers: Iterable[LayerRatio]) -> float:
    finite = [layer.source for layer in layers if math.isfinite(layer.source)]
    return sum(finite) / len(finite) if finite else math.nan
