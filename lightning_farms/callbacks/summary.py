"""The table that closes a run."""

from __future__ import annotations

import math
from collections.abc import Mapping

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from lightning_farms.analysis.report import SpectralReport
from lightning_farms.callbacks.history import LayerHistory


def summary_table(
    report: SpectralReport,
    history: LayerHistory,
    multipliers: Mapping[str, float] | None,
    *,
    factor: str = "lr factor",
) -> Table:
    """One line a layer: name, shape, alpha first and last, multiplier, and why a layer was left out.

    Args:
        report: the last analysis.
        history: the run's analyses.
        multipliers: {layer: multiplier} now in force, or None where nothing is adjusted.
        factor: title of the multipliers' column.

    Returns:
        The table.
    """
    table = Table(title=f"Spectra after {history.epochs[-1] if history.epochs else 0} epochs", box=SIMPLE_HEAD)
    table.add_column("layer", overflow="fold")
    table.add_column("shape", no_wrap=True)
    table.add_column("alpha first", justify="right")
    table.add_column("last", justify="right", no_wrap=True)
    if multipliers is not None:
        table.add_column(factor, justify="right")
    if any(row.reason for row in report):
        table.add_column("remark", overflow="fold")
    alphas = dict(zip(history.layers("alpha"), history.rows("alpha"), strict=True))
    for row in report:
        first = alphas.get(row.name, [math.nan])[0]
        cells = [escape(row.name), "x".join(map(str, row.shape)), _number(first), _number(row.alpha)]
        if multipliers is not None:
            cells.append(f"{multipliers[row.name]:.3f}" if row.name in multipliers else "not trained")
        table.add_row(
            *cells, *([escape(row.reason)] if row.reason else []), style="dim" if row.status == "skipped" else None
        )
    table.caption = f"mean alpha {_number(report.mean_alpha)}, std {_number(report.std_alpha)}"
    return table


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
