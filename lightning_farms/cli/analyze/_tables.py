"""Printing of results as tables."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lightning_farms.analysis.comparison import ComparedLayer, Comparison
from lightning_farms.analysis.layer_spectrum import Status
from lightning_farms.analysis.outliers import SPREAD, outliers, rule
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.summary import summarize
from lightning_farms.analysis.table import (
    LEFT,
    MARKS,
    closing_lines,
    counts_text,
    listed_reasons,
    report_cells,
    standing_out,
)
from lightning_farms.common.texts import listed, printable, shape_text

_STYLES = {"high": "bold red", "low": "bold cyan"}

_Side = Literal["high", "low"] | None

# on a narrow terminal these columns are dropped, one after the other; optional ones that were asked for go last
_GIVE_WAY: tuple[str, ...] = ("stable rank", "log norm", "alpha_hat", "D", "windows", "kind", "error", "shape")
_GIVE_WAY += ("spikes", "relative", "p", "interval", "left out", "law", "no outliers")


def print_report(
    console: Console, report: SpectralReport, *, title: str, fit: str, reading: str = "", of_change: bool = False
) -> None:
    """Print a line per layer, how to read alpha, what was skipped and why, the summary, and layers that stand out."""
    analysed = [row for row in report if row.status is Status.OK]
    marked = standing_out(report, fit=fit)
    if analysed:
        cells: dict[str, Sequence[str | Text]] = dict(report_cells(report))
        alphas = zip(cells["alpha"], analysed, strict=True)
        cells["alpha"] = [_marked(str(text), marked.get(row.name)) for text, row in alphas]
        _print_what_fits(console, cells, title, _GIVE_WAY)
        if reading:
            console.print(reading, soft_wrap=True)
    for line in listed_reasons(report):
        console.print(line, soft_wrap=True)
    if marked:
        console.print(_legend("alpha", rule(fit)), soft_wrap=True)
    console.print(counts_text(list(report), report.summary), soft_wrap=True)
    for line in closing_lines(list(report), of_change=of_change):
        console.print(line, soft_wrap=True)


def _print_what_fits(
    console: Console, cells: Mapping[str, Sequence[str | Text]], title: str, give_way: Iterable[str]
) -> None:
    """Print columns of cells as a table, dropping those in `give_way` as far as needed to fit."""
    shown = dict(cells)
    table = _table(title, shown)
    for name in give_way:
        if _width(console, table) <= console.width:
            break
        if name in shown:
            del shown[name]
            table = _table(title, shown)
    console.print(table)
    if len(shown) < len(cells):
        left_out = ", ".join(name for name in cells if name not in shown)
        console.print(f"Left out for want of room: {left_out}. --format csv has all columns.", soft_wrap=True)


def _width(console: Console, table: Table) -> int:
    """Number of terminal columns that a table would take if there were no limit."""
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def print_comparison(console: Console, comparison: Comparison, *, names: tuple[str, str]) -> None:
    """Print alpha in both checkpoints, its change, layers without a partner, and the summary."""
    if comparison.layers:
        marked = outliers({layer.name: layer.delta for layer in comparison.layers}, fit="")
        cells = _compared(comparison.layers, marked)
        _print_what_fits(console, cells, f"{names[0]} against {names[1]}", ("kind", "shape"))
        if marked:
            console.print(_legend("delta", SPREAD), soft_wrap=True)
    for title, layers in (
        (printable(f"Only in {names[0]}"), comparison.only),
        (printable(f"Only in {names[1]}"), comparison.other_only),
        ("Without alpha in one or both", comparison.without_alpha),
    ):
        if layers:
            console.print(f"{title} ({len(layers)}): {listed(layers)}", soft_wrap=True)
    columns = (("alpha", "alpha"), ("other", "other_alpha"), ("delta", "delta")) if comparison.layers else ()
    for title, column in columns:
        summary = summarize(getattr(layer, column) for layer in comparison.layers)
        console.print(f"{title}: {summary}", soft_wrap=True)


def _compared(
    layers: Iterable[ComparedLayer], marked: Mapping[str, Literal["high", "low"]]
) -> dict[str, list[str | Text]]:
    return {
        "layer": [printable(layer.name) for layer in layers],
        "kind": [layer.kind for layer in layers],
        "shape": [shape_text(layer.shape) for layer in layers],
        "alpha": [f"{layer.alpha:.3f}" for layer in layers],
        "other": [f"{layer.other_alpha:.3f}" for layer in layers],
        "delta": [_marked(f"{layer.delta:+.3f}", marked.get(layer.name)) for layer in layers],
    }


def _table(title: str, columns: Mapping[str, Sequence[str | Text]]) -> Table:
    table = Table(title=printable(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        left = name in LEFT
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=name != "layer")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _marked(text: str, side: _Side) -> Text:
    return Text(f"{text}{MARKS[side]}", style=_STYLES[side]) if side else Text(f"{text} ")


def _legend(what: str, rule_in_words: str) -> Text:
    high, low = ("+", _STYLES["high"]), ("-", _STYLES["low"])
    return Text.assemble(high, " and ", low, f" mark layers that stand out: {what} {rule_in_words}")
