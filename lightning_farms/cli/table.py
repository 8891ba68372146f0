"""Results as tables for people."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Literal, NamedTuple

from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.markup import escape
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from lightning_farms.analysis import LayerSpectrum, SpectralReport
from lightning_farms.analysis.comparison import ComparedLayer, Comparison
from lightning_farms.analysis.summary import summarize
from lightning_farms.cli.outliers import outliers, rule

_STYLES = {"high": "bold red", "low": "bold cyan"}
_MARKS = {"high": "+", "low": "-"}
_SHOWN = 8  # names of layers of one reason

_Side = Literal["high", "low"] | None


class _Column(NamedTuple):
    """A column of figures: its title, and the text and the value that decides whether it is shown at all."""

    title: str
    text: Callable[[LayerSpectrum], str]
    value: Callable[[LayerSpectrum], float]


# those that were asked for come first, as the last ones give way on a narrow terminal
_FIGURES = (
    _Column("interval", lambda row: f"{row.alpha_low:.3f}..{row.alpha_high:.3f}", lambda row: row.alpha_low),
    _Column("p", lambda row: f"{row.p_value:.2f}", lambda row: row.p_value),
    _Column("relative", lambda row: f"{row.relative_alpha:.3f}", lambda row: row.relative_alpha),
    _Column("spikes", lambda row: f"{row.mp_spikes:.1f}", lambda row: row.mp_spikes),
    _Column("error", lambda row: f"{row.standard_error:.3f}", lambda row: row.standard_error),
    _Column("D", lambda row: f"{row.ks_distance:.3f}", lambda row: row.ks_distance),
    _Column("alpha_hat", lambda row: f"{row.alpha_hat:.2f}", lambda row: row.alpha_hat),
    _Column("log norm", lambda row: f"{row.log_norm:.2f}", lambda row: row.log_norm),
    _Column("stable rank", lambda row: f"{row.stable_rank:.1f}", lambda row: row.stable_rank),
)


def print_report(console: Console, report: SpectralReport, *, title: str, fit: str) -> None:
    """Print one line a layer, what was skipped and why, and the summary.

    Args:
        console: where to.
        report: the result.
        title: of the table.
        fit: how alpha was found, for the rule of outliers.
    """
    analysed = [row for row in report if row.status == "ok"]
    marked = outliers(report.alphas, fit=fit)
    if analysed:
        shown = [column for column in _FIGURES if any(math.isfinite(column.value(row)) for row in analysed)]
        table = _report_table(title, analysed, shown, marked)
        known = len(shown)
        while shown and _width(console, table) > console.width:
            table = _report_table(title, analysed, shown := shown[:-1], marked)
        console.print(table)
        if len(shown) < known:
            console.print(f"{known - len(shown)} columns have no room here; --format csv has all.", highlight=False)
    _print_reasons(console, "Skipped", [row for row in report if row.status == "skipped"])
    _print_reasons(console, "Remarks", [row for row in analysed if row.reason])
    if marked:
        console.print(_legend("alpha", fit), soft_wrap=True)
    skipped = len(report) - len(analysed)
    summary = report.summary
    console.print(
        f"{len(analysed)} layers analysed, {skipped} skipped. alpha: {summary}", soft_wrap=True, highlight=False
    )


def _report_table(
    title: str, rows: list[LayerSpectrum], figures: list[_Column], marked: Mapping[str, Literal["high", "low"]]
) -> Table:
    table = _table(title, ("layer", "kind", "shape", "windows", "alpha", *(column.title for column in figures)))
    for row in rows:
        alpha = _marked(f"{row.alpha:.3f}", marked.get(row.name))
        texts = (column.text(row) if math.isfinite(column.value(row)) else "" for column in figures)
        table.add_row(escape(row.name), row.kind, _shape(row.shape), str(row.windows), alpha, *texts)
    return table


def _width(console: Console, table: Table) -> int:
    """Columns of a terminal that a table would take if it could have any number."""
    return Measurement.get(console, console.options.update(width=10_000), table).maximum


def print_comparison(console: Console, comparison: Comparison, *, names: tuple[str, str]) -> None:
    """Print alpha in both, its change, what has no partner, and the summary.

    Args:
        console: where to.
        comparison: the result.
        names: of the two files.
    """
    if comparison.layers:
        table = _table(f"{names[0]} against {names[1]}", ("layer", "kind", "shape", "alpha", "other", "delta"))
        marked = outliers({layer.name: layer.delta for layer in comparison.layers}, fit="")
        for layer in comparison.layers:
            table.add_row(*_compared(layer, marked.get(layer.name)))
        console.print(table)
        if marked:
            console.print(_legend("delta", ""), soft_wrap=True)
    for title, layers in (
        (f"Only in {names[0]}", comparison.only),
        (f"Only in {names[1]}", comparison.other_only),
        ("Without alpha in one of the two", comparison.without_alpha),
    ):
        if layers:
            console.print(f"{title} ({len(layers)}): {_listed(layers)}", soft_wrap=True, highlight=False, markup=False)
    columns = (("alpha", "alpha"), ("other", "other_alpha"), ("delta", "delta")) if comparison.layers else ()
    for title, column in columns:
        summary = summarize(getattr(layer, column) for layer in comparison.layers)
        console.print(f"{title}: {summary}", soft_wrap=True, highlight=False)


def _compared(layer: ComparedLayer, side: _Side) -> tuple[str | Text, ...]:
    delta = _marked(f"{layer.delta:+.3f}", side)
    alphas = (f"{layer.alpha:.3f}", f"{layer.other_alpha:.3f}")
    return (escape(layer.name), layer.kind, _shape(layer.shape), *alphas, delta)


def _table(title: str, columns: Iterable[str]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        left = name in ("layer", "kind")
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=name != "layer")
    return table


def _marked(text: str, side: _Side) -> Text:
    return Text(f"{text}{_MARKS[side]}", style=_STYLES[side]) if side else Text(f"{text} ")


def _legend(what: str, fit: str) -> Text:
    high, low = ("+", _STYLES["high"]), ("-", _STYLES["low"])
    return Text.assemble(high, " and ", low, f" mark outliers: {what} {rule(fit)}")


def _print_reasons(console: Console, title: str, rows: list[LayerSpectrum]) -> None:
    by_reason: Mapping[str, list[str]] = defaultdict(list)
    for row in rows:
        reason = row.reason.replace("Selection(embeddings=True)", "--embeddings")
        by_reason[reason].append(row.name)
    for reason, names in by_reason.items():
        text = f"{title} ({len(names)}): {reason}: {_listed(names)}"
        console.print(text, soft_wrap=True, highlight=False, markup=False)


def _listed(names: Iterable[str]) -> str:
    known = list(names)
    rest = len(known) - _SHOWN
    return ", ".join(known[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))
