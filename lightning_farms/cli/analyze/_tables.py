"""Results as tables for people."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
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
from lightning_farms.cli.analyze._outliers import SPREAD, outliers, rule

_STYLES = {"high": "bold red", "low": "bold cyan"}
_MARKS = {"high": "+", "low": "-"}
_SHOWN = 8  # names of layers of one reason

_Side = Literal["high", "low"] | None


class _Column(NamedTuple):
    """A column of the report: its title, its text, and the value without which a cell is empty."""

    title: str
    text: Callable[[LayerSpectrum], str | Text]
    value: Callable[[LayerSpectrum], float] = lambda row: 0.0


_BEFORE_ALPHA = (
    _Column("layer", lambda row: escape(row.name)),
    _Column("kind", lambda row: row.kind),
    _Column("shape", lambda row: _shape(row.shape)),
    _Column("windows", lambda row: str(row.windows)),
)
_AFTER_ALPHA = (
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
# on a narrow terminal these give way, one after the other; those that were asked for are the last
_GIVE_WAY: tuple[str, ...] = ("stable rank", "log norm", "alpha_hat", "D", "windows", "kind", "error", "shape")
_GIVE_WAY += ("spikes", "relative", "p", "interval")


def print_report(console: Console, report: SpectralReport, *, title: str, fit: str) -> None:
    """Print one line a layer, what was skipped and why, and the summary.

    Args:
        console: where to.
        report: the result.
        title: of the table.
        fit: how alpha was found, for the rule of outliers.
    """
    analysed = [row for row in report if row.status == "ok"]
    marked = outliers(report.alphas, fit=fit, errors={row.name: row.standard_error for row in analysed})
    if analysed:
        columns = [column for column in _columns(marked) if any(math.isfinite(column.value(row)) for row in analysed)]
        _print_what_fits(console, {c.title: [_cell(c, row) for row in analysed] for c in columns}, title, _GIVE_WAY)
    _print_reasons(console, "Skipped", [row for row in report if row.status == "skipped"])
    _print_reasons(console, "Remarks", [row for row in analysed if row.reason])
    if marked:
        console.print(_legend("alpha", rule(fit)), soft_wrap=True)
    counts = f"{len(analysed)} layers analysed, {len(report) - len(analysed)} skipped."
    console.print(f"{counts} alpha: {report.summary}" if analysed else counts, soft_wrap=True, highlight=False)


def _columns(marked: Mapping[str, Literal["high", "low"]]) -> list[_Column]:
    alpha = _Column("alpha", lambda row: _marked(f"{row.alpha:.3f}", marked.get(row.name)))
    return [*_BEFORE_ALPHA, alpha, *_AFTER_ALPHA]


def _cell(column: _Column, row: LayerSpectrum) -> str | Text:
    return column.text(row) if math.isfinite(column.value(row)) else ""


def _print_what_fits(
    console: Console, cells: Mapping[str, Sequence[str | Text]], title: str, give_way: Iterable[str]
) -> None:
    """Print columns of cells as a table, without those that give way where all do not fit."""
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
        console.print(f"No room here for: {left_out}; --format csv has all.", soft_wrap=True, highlight=False)


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
        marked = outliers({layer.name: layer.delta for layer in comparison.layers}, fit="")
        cells = _compared(comparison.layers, marked)
        _print_what_fits(console, cells, f"{names[0]} against {names[1]}", ("kind", "shape"))
        if marked:
            console.print(_legend("delta", SPREAD), soft_wrap=True)
    for title, layers in (
        (f"Only in {names[0]}", comparison.only),
        (f"Only in {names[1]}", comparison.other_only),
        ("Without alpha in one or both", comparison.without_alpha),
    ):
        if layers:
            console.print(f"{title} ({len(layers)}): {_listed(layers)}", soft_wrap=True, highlight=False, markup=False)
    columns = (("alpha", "alpha"), ("other", "other_alpha"), ("delta", "delta")) if comparison.layers else ()
    for title, column in columns:
        summary = summarize(getattr(layer, column) for layer in comparison.layers)
        console.print(f"{title}: {summary}", soft_wrap=True, highlight=False)


def _compared(
    layers: Iterable[ComparedLayer], marked: Mapping[str, Literal["high", "low"]]
) -> dict[str, list[str | Text]]:
    return {
        "layer": [escape(layer.name) for layer in layers],
        "kind": [layer.kind for layer in layers],
        "shape": [_shape(layer.shape) for layer in layers],
        "alpha": [f"{layer.alpha:.3f}" for layer in layers],
        "other": [f"{layer.other_alpha:.3f}" for layer in layers],
        "delta": [_marked(f"{layer.delta:+.3f}", marked.get(layer.name)) for layer in layers],
    }


def _table(title: str, columns: Mapping[str, Sequence[str | Text]]) -> Table:
    table = Table(title=escape(title), title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for name in columns:
        left = name in ("layer", "kind")
        table.add_column(name, justify="left" if left else "right", overflow="fold", no_wrap=name != "layer")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    return table


def _marked(text: str, side: _Side) -> Text:
    return Text(f"{text}{_MARKS[side]}", style=_STYLES[side]) if side else Text(f"{text} ")


def _legend(what: str, rule_in_words: str) -> Text:
    high, low = ("+", _STYLES["high"]), ("-", _STYLES["low"])
    return Text.assemble(high, " and ", low, f" mark outliers: {what} {rule_in_words}")


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
