"""The table that is printed at the end of a run."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from lightning_farms.analysis.history import LayerHistory
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.common.quantities import counted
from lightning_farms.common.texts import listed, shape_text

_NAMED = 5  # number of layers that are named for one reason


def summary_table(
    report: SpectralReport,
    history: LayerHistory,
    factors: Mapping[str, Mapping[str, float]] | None = None,
    remarks: Sequence[str] = (),
    *,
    balanced: Iterable[Collection[str]] = (),
    after: str = "training",
) -> Table:
    """Build the table: per layer its name, shape, first and last alpha, and factors; below it means, reasons, remarks.

    ``balanced`` holds, for each callback, the weights of the report that it balances, or none if it balances none.
    """
    table = Table(
        title=f"Spectra after {after}", box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0), caption_justify="left"
    )
    table.add_column("layer", overflow="fold")
    table.add_column("shape", no_wrap=True)
    columns = dict(factors or {})
    for title in ("alpha first", "last", *columns):  # on two lines, as the layers' names need the room
        table.add_column(title.replace(" ", "\n"), justify="right", no_wrap=title == "last")
    alphas = dict(zip(history.layers("alpha"), history.rows("alpha"), strict=True))
    for row in report:
        first = alphas.get(row.name, [math.nan])[0]
        cells = [escape(row.name), shape_text(row.shape), _number(first), _number(row.alpha)]
        cells += [f"{of[row.name]:.3f}" if row.name in of else "not trained" for of in columns.values()]
        table.add_row(*cells, style="dim" if row.status == "skipped" else None)
    table.caption = "\n".join([_means(report, balanced), *_reasons(report), *map(escape, remarks)])
    return table


def _means(report: SpectralReport, balanced: Iterable[Collection[str]]) -> str:
    """The mean and spread of alpha over the balanced layers, and over all analysed layers."""
    analysed = {row.name: row for row in report if row.status == "ok"}
    balanced = list(dict.fromkeys(frozenset(names) for names in balanced))
    parts: list[str] = []
    for names in balanced:
        rows = [row for name, row in analysed.items() if name in names]
        if rows:
            layers = counted(len(rows), "balanced layer")
            parts.append(f"{_moments(SpectralReport(rows))} over the {layers}")
    if not parts:
        return f"mean alpha: {_moments(report)}"
    if not any(analysed.keys() <= set(names) for names in balanced):
        parts.append(f"{_moments(report)} over all {len(analysed)} analysed")
    return f"mean alpha: {', '.join(parts)}"


def _moments(report: SpectralReport) -> str:
    return f"{_number(report.mean_alpha)} (std {_number(report.std_alpha)})"


def _reasons(report: SpectralReport) -> list[str]:
    """One line per reason for which layers were left out, with the first of these layers."""
    layers: dict[str, list[str]] = {}
    for row in report:
        if row.reason:
            layers.setdefault(row.reason, []).append(row.name)
    return [escape(f"{listed(names, _NAMED)}: {reason}") for reason, names in layers.items()]


def _number(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "-"
