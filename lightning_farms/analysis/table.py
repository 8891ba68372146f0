"""A report as a table of texts: what the command prints, and what a report shows of itself in a notebook."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import NamedTuple

from lightning_farms.analysis.layer_spectrum import LayerSpectrum, Status
from lightning_farms.analysis.outliers import outliers
from lightning_farms.common.texts import listed

MARKS = {"high": "+", "low": "-"}
LEFT = ("layer", "kind")  # columns of words; those of numbers stand to the right


class _Column(NamedTuple):
    """A column: its title, a cell's text, and the value without which a cell is empty."""

    title: str
    text: Callable[[LayerSpectrum], str]
    value: Callable[[LayerSpectrum], float] = lambda row: 0.0


_COLUMNS = (
    _Column("layer", lambda row: row.name),
    _Column("kind", lambda row: row.kind),
    _Column("shape", lambda row: shape_text(row.shape)),
    _Column("windows", lambda row: str(row.windows)),
    _Column("alpha", lambda row: f"{row.alpha:.3f}"),
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


def shape_text(shape: Sequence[int]) -> str:
    """``64x3x3x3``."""
    return "x".join(map(str, shape))


def report_cells(rows: Iterable[LayerSpectrum]) -> dict[str, list[str]]:
    """{title: one text a layer that was analysed}, without columns that no layer has anything in."""
    analysed = [row for row in rows if row.status is Status.OK]
    columns = [column for column in _COLUMNS if any(math.isfinite(column.value(row)) for row in analysed)]
    return {c.title: [c.text(row) if math.isfinite(c.value(row)) else "" for row in analysed] for c in columns}


def listed_reasons(rows: Iterable[LayerSpectrum]) -> Iterator[str]:
    """One line a reason for which layers were skipped, or remark on such as were not, with the first of the layers."""
    for title, status in (("Skipped", Status.SKIPPED), ("Remarks", Status.OK)):
        by_reason: dict[str, list[str]] = {}
        for row in rows:
            if row.status is status and row.reason:
                by_reason.setdefault(row.reason, []).append(row.name)
        for reason, names in by_reason.items():
            yield f"{title} ({len(names)}): {reason}: {listed(names)}"


def counts_text(rows: Sequence[LayerSpectrum], summary: object) -> str:
    """How many layers were analysed and skipped, alpha over the former, and which way those on a device went."""
    analysed = sum(row.status is Status.OK for row in rows)
    counts = f"{analysed} layers analysed, {len(rows) - analysed} skipped."
    return f"{counts} alpha: {summary}{_ways_text(rows)}" if analysed else counts


def ways(rows: Iterable[LayerSpectrum]) -> dict[str, int]:
    """{way that eigenvalues of weights on a device came: layers}; empty on the CPU."""
    return dict(Counter(row.way for row in rows if row.way))


def _ways_text(rows: Iterable[LayerSpectrum]) -> str:
    counts = ", ".join(f"{way} ({number})" for way, number in ways(rows).items())
    return f". Eigenvalues by: {counts}" if counts else ""


def text_table(rows: Sequence[LayerSpectrum], summary: object) -> str:
    """The report as lines of text."""
    cells = _marked_cells(rows)
    widths = {title: max(map(len, [title, *column])) for title, column in cells.items()}
    lines = [list(cells), *zip(*cells.values(), strict=True)] if cells else []
    aligned = [
        "  ".join(
            cell.ljust(width) if title in LEFT else cell.rjust(width)
            for cell, (title, width) in zip(line, widths.items(), strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*aligned, *listed_reasons(rows), counts_text(rows, summary)])


def html_table(rows: Sequence[LayerSpectrum], summary: object) -> str:
    """The report as an HTML table that scrolls where it is long."""
    cells = _marked_cells(rows)
    head = "".join(f"<th>{escape(title)}</th>" for title in cells)
    body = "".join(_html_row(dict(zip(cells, line, strict=True))) for line in zip(*cells.values(), strict=True))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if cells else ""
    notes = "".join(f"<br>{escape(line)}" for line in listed_reasons(rows))
    return (
        f'<div style="max-height: 40em; overflow: auto">{table}</div>'
        f"<div>{escape(counts_text(rows, summary))}{notes}</div>"
    )


def _html_row(line: Mapping[str, str]) -> str:
    return (
        "<tr>"
        + "".join(
            f'<td style="text-align: {"left" if title in LEFT else "right"}">{escape(cell)}</td>'
            for title, cell in line.items()
        )
        + "</tr>"
    )


def _marked_cells(rows: Sequence[LayerSpectrum]) -> dict[str, list[str]]:
    """The cells, with a mark behind the alphas that stand out."""
    cells = report_cells(rows)
    if cells:
        analysed = {row.name: row for row in rows if row.status is Status.OK}
        errors = {name: row.standard_error for name, row in analysed.items()}
        marked = outliers({name: row.alpha for name, row in analysed.items()}, fit="", errors=errors)
        texts = zip(cells["alpha"], analysed, strict=True)
        rest = " " if marked else ""
        cells["alpha"] = [text + (MARKS[marked[name]] if name in marked else rest) for text, name in texts]
    return cells
