"""A report as a table of texts, as the command prints it and a notebook shows it."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from html import escape
from typing import Literal, NamedTuple
from unicodedata import east_asian_width

from lightning_farms.analysis.guidance import guidance
from lightning_farms.analysis.layer_spectrum import LayerSpectrum, Status
from lightning_farms.analysis.outliers import outliers
from lightning_farms.common.quantities import counted
from lightning_farms.common.texts import listed, printable, shape_text

DECISIVE = 0.1
"""P-value below which a likelihood ratio's sign is trusted (Clauset, Shalizi and Newman, 2009, Section 5)."""

MARKS = {"high": "+", "low": "-"}
LEFT = ("layer", "kind", "law")  # columns of words; columns of numbers are aligned to the right


class _Column(NamedTuple):
    """A column: its title, a cell's text, and a value; the cell is empty if that is not finite."""

    title: str
    text: Callable[[LayerSpectrum], str]
    value: Callable[[LayerSpectrum], float] = lambda row: 0.0


_COLUMNS = (
    _Column("layer", lambda row: printable(row.name)),
    _Column("kind", lambda row: row.kind),
    _Column("shape", lambda row: shape_text(row.shape)),
    _Column("windows", lambda row: str(row.windows)),
    _Column("alpha", lambda row: f"{row.alpha:.3f}"),
    _Column("no outliers", lambda row: f"{row.alpha_without_outliers:.3f}", lambda row: row.alpha_without_outliers),
    _Column("left out", lambda row: f"{row.outlier_eigenvalues:.0f}", lambda row: row.outlier_eigenvalues),
    _Column("law", lambda row: preferred_law(row), lambda row: row.lognormal_p),
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


def preferred_law(row: LayerSpectrum) -> str:
    """Return the law to which a power law loses most clearly, with p < 0.1, or else the laws that are not ruled out.

    The text is "undecided" if neither a lognormal nor an exponential is ruled out.

    Example:
        >>> row = LayerSpectrum("fc", "linear", (8, 4), lognormal_ratio=-3.0, lognormal_p=0.01, exponential_ratio=5.0,
        ...     exponential_p=0.001, truncated_ratio=-0.2, truncated_p=0.8)
        >>> preferred_law(row)
        'lognormal'
    """
    against = {
        "lognormal": (row.lognormal_ratio, row.lognormal_p),
        "exponential": (row.exponential_ratio, row.exponential_p),
        "truncated": (row.truncated_ratio, row.truncated_p),
    }
    better = {name: ratio for name, (ratio, p_value) in against.items() if ratio < 0 and p_value < DECISIVE}
    undecided = [name for name, (_, p_value) in against.items() if not p_value < DECISIVE and name != "truncated"]
    if better:
        return min(better, key=lambda name: better[name])
    return "undecided" if len(undecided) > 1 else " or ".join(["power law", *undecided])


def report_cells(rows: Iterable[LayerSpectrum]) -> dict[str, list[str]]:
    """Return {title: one text per analysed layer}, without columns in which all cells are empty."""
    analysed = [row for row in rows if row.status is Status.OK]
    columns = [column for column in _COLUMNS if any(math.isfinite(column.value(row)) for row in analysed)]
    return {c.title: [c.text(row) if math.isfinite(c.value(row)) else "" for row in analysed] for c in columns}


def listed_reasons(rows: Iterable[LayerSpectrum]) -> Iterator[str]:
    """Yield a line per reason of skipped layers and per remark on analysed ones, with the first of these layers."""
    for title, status in (("Skipped", Status.SKIPPED), ("Remarks", Status.OK)):
        by_reason: dict[str, list[str]] = {}
        for row in rows:
            if row.status is status and row.reason:
                by_reason.setdefault(row.reason, []).append(row.name)
        for reason, names in by_reason.items():
            yield f"{title} ({len(names)}): {listed(names)} ({printable(reason)})"


def counts_text(rows: Sequence[LayerSpectrum], summary: object) -> str:
    """Return the numbers of analysed and skipped layers, the summary of alpha, and the routines used on devices."""
    analysed = sum(row.status is Status.OK for row in rows)
    counts = f"{counted(analysed, 'layer')} analysed, {len(rows) - analysed} skipped."
    return f"{counts} alpha: {summary}{_ways_text(rows)}" if analysed else counts


def ways(rows: Iterable[LayerSpectrum]) -> dict[str, int]:
    """Return {routine: number of layers} for the eigenvalues of weights on a device; empty on the CPU."""
    return dict(Counter(row.way for row in rows if row.way))


def _ways_text(rows: Iterable[LayerSpectrum]) -> str:
    counts = ", ".join(f"{way} ({number})" for way, number in ways(rows).items())
    return f". Eigenvalues by: {counts}" if counts else ""


def closing_lines(rows: Sequence[LayerSpectrum], *, of_change: bool = False) -> list[str]:
    """Return lines on what the optional columns say about all layers, and on which layers stand out.

    Args:
        rows: rows of the report.
        of_change: whether the weights are changes from a base; layers that stand out are then named without a meaning.
    """
    return [*_without_outliers(rows), *_laws(rows), *guidance(rows, of_change=of_change)]


def _without_outliers(rows: Iterable[LayerSpectrum]) -> Iterator[str]:
    """Say how far alpha moves without the outlier eigenvalues."""
    asked = [row for row in rows if not math.isnan(row.outlier_eigenvalues)]
    moved = sorted((row for row in asked if row.outlier_eigenvalues), key=_shift, reverse=True)
    if moved:
        texts = (
            f"{row.name} {row.alpha:.3f} -> {row.alpha_without_outliers:.3f} ({row.outlier_eigenvalues:.0f} of "
            f"{row.eigenvalue_count} left out)"
            for row in moved
        )
        layers = f"{len(moved)} of {counted(len(asked), 'layer')}"
        yield f"Without outlier eigenvalues alpha changes in {layers}: {listed(texts, 5)}."
    elif asked:
        yield f"No outlier eigenvalues in {counted(len(asked), 'layer')}."
    if asked:
        yield (
            "Outlier eigenvalues (spikes) are those beyond the Tracy-Widom edge of the random bulk. Where many are, "
            "they make up a heavy tail, and only those with a gap before them are left out."
        )


def _shift(row: LayerSpectrum) -> float:
    return abs(row.alpha_without_outliers - row.alpha) if math.isfinite(row.alpha_without_outliers) else math.inf


def _laws(rows: Iterable[LayerSpectrum]) -> Iterator[str]:
    laws = [preferred_law(row) for row in rows if not math.isnan(row.lognormal_p)]
    if laws:
        beaten = sum(law != "undecided" and "power law" not in law for law in laws)
        yield (
            f"law: the law that describes the fitted tail best, by likelihood ratios with p < {DECISIVE} (Vuong). In "
            f"{beaten} of {counted(len(laws), 'layer')} it is another one than a power law. Take it with care: "
            "eigenvalues are not independent samples, and fewer than about 50 seldom decide."
        )


def text_table(rows: Sequence[LayerSpectrum], summary: object) -> str:
    """Return the report as lines of text."""
    cells = _marked_cells(rows)
    widths = {title: max(map(_columns, [title, *column])) for title, column in cells.items()}
    lines = [list(cells), *zip(*cells.values(), strict=True)] if cells else []
    aligned = [
        "  ".join(
            cell + " " * (width - _columns(cell)) if title in LEFT else cell.rjust(width)
            for cell, (title, width) in zip(line, widths.items(), strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join([*aligned, *listed_reasons(rows), counts_text(rows, summary), *closing_lines(rows)])


def _columns(text: str) -> int:
    """Number of columns that a text takes on a terminal, where a Chinese letter is two wide."""
    return len(text) + sum(east_asian_width(letter) in "WF" for letter in text)


def html_table(rows: Sequence[LayerSpectrum], summary: object) -> str:
    """Return the report as an HTML table that scrolls if it is long."""
    cells = _marked_cells(rows)
    head = "".join(f"<th>{escape(title)}</th>" for title in cells)
    body = "".join(_html_row(dict(zip(cells, line, strict=True))) for line in zip(*cells.values(), strict=True))
    table = f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>" if cells else ""
    notes = "".join(f"<br>{escape(line)}" for line in [*listed_reasons(rows), *closing_lines(rows)])
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


def standing_out(rows: Iterable[LayerSpectrum], *, fit: str = "") -> dict[str, Literal["high", "low"]]:
    """Return layers whose alpha stands out (see :func:`outliers`); LoRA products are compared among themselves."""
    analysed = [row for row in rows if row.status is Status.OK]
    sides: dict[str, Literal["high", "low"]] = {}
    for products in (False, True):
        group = [row for row in analysed if (row.kind == "low-rank product") is products]
        errors = {row.name: row.standard_error for row in group}
        sides |= outliers({row.name: row.alpha for row in group}, fit=fit, errors=errors)
    return sides


def _marked_cells(rows: Sequence[LayerSpectrum]) -> dict[str, list[str]]:
    """Return the cells, with a mark after the alphas that stand out."""
    cells = report_cells(rows)
    if cells:
        analysed = [row.name for row in rows if row.status is Status.OK]
        marked = standing_out(rows)
        texts = zip(cells["alpha"], analysed, strict=True)
        rest = " " if marked else ""
        cells["alpha"] = [text + (MARKS[marked[name]] if name in marked else rest) for text, name in texts]
    return cells
