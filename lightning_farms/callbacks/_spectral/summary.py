"""The table that closes a run."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from lightning_farms.analysis.history import LayerHistory
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.table import shape_text

_NAMED = 5  # layers of one reason


def summary_table(
    report: SpectralReport,
    history: LayerHistory,
    factors: Mapping[str, Mapping[str, float]] | None = None,
    remarks: Sequence[str] = (),
    *,
    after: str = "training",
) -> Table:
    """One line a layer: name, shape, alpha first and last, factors; below it why layers were left out, and remarks."""
    table = Table(title=f"Spectra after {after}", box=SIMPLE_HEAD, caption_justify="left")
    table.add_column("layer", overflow="fold")
    table.add_column("shape", no_wrap=True)
    columns = dict(factors or {})
    between = "\n" if len(columns) > 1 else " "  # where there are many, the layers' names need the room
    for title in ("alpha first", "last", *columns):
        table.add_column(title.replace(" ", between), justify="right", no_wrap=title == "last")
    alphas = dict(zip(history.layers("alpha"), history.rows("alpha"), strict=True))
    for row in report:
        first = alphas.get(row.name, [math.nan])[0]
        cells = [escape(row.name), shape_text(row.shape), _number(first), _number(row.alpha)]
        cells += [f"{of[row.name]:.3f}" if row.name in of else "not trained" for of in columns.values()]
        table.add_row(*cells, style="dim" if row.status == "skipped" else None)
    mean = f"mean alpha {_number(report.mean_alpha)}, std {_number(report.std_alpha)}"
    table.caption = "\n".join([mean, *_reasons(report), *map(escape, remarks)])
    return table


def _reasons(report: SpectralReport) -> list[str]:
    """One line a reason, with the first of the layers that have it."""
    layers: dict[str, list[str]] = {}
    for row in report:
        if row.reason:
            layers.setdefault(row.reason, []).append(row.name)
    lines = []
    for reason, names in layers.items():
        more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
        lines.append(escape(f"{', '.join(names[:_NAMED])}{more}: {reason}"))
    return lines


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
