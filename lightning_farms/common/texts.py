"""Results as text: standard JSON (without NaN and infinity), CSV, lists of names, names for a terminal, and files."""

from __future__ import annotations

import csv
import io
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from lightning_farms.common.atomic import write_text


def json_text(content: Mapping[str, Any]) -> str:
    r"""Format indented JSON, with ``null`` for numbers that are not finite.

    Example:
        >>> json_text({"alpha": float("nan")})
        '{\n  "alpha": null\n}\n'
    """
    return json.dumps(_without_nan(content), indent=2, allow_nan=False) + "\n"


def csv_text(records: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    r"""Return a header and one line per record, with shapes as ``64x3x3x3`` and missing numbers as ``nan``."""
    rows = ([_shape_as_text(record[name]) for name in columns] for record in records)
    return "".join(map(_csv_line, [columns, *rows]))


def write_if_asked(text: str, path: str | PathLike[str] | None) -> str:
    """Write a text to a file, completely or not at all, if a path is given; return the text."""
    if path is not None:
        write_text(Path(path), text)
    return text


def number_order(name: str) -> list[tuple[int, str]]:
    """Sorting key that puts data_10 after data_9.

    Example:
        >>> sorted(["data_10", "data_9", "index"], key=number_order)
        ['data_9', 'data_10', 'index']
    """
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.findall(r"\d+|\D+", name)]


def printable(text: str, *, but: str = "") -> str:
    r"""Escape what a terminal would obey or not show; a file's names may hold it. `but` are letters to leave.

    Example:
        >>> printable("fc\x1b[2J\nfake")
        'fc\\x1b[2J\\nfake'
    """
    return "".join(c if c.isprintable() or c in but else repr(c)[1:-1] for c in text)


def listed(names: Iterable[str], shown: int = 8) -> str:
    """The first names, for a terminal, and how many more there are.

    Example:
        >>> listed(["a", "b", "c"], shown=2)
        'a, b and 1 more'
    """
    known = list(names)
    rest = len(known) - shown
    return ", ".join(map(printable, known[:shown])) + (f" and {rest} more" if rest > 0 else "")


def shape_text(shape: Iterable[int]) -> str:
    """Format a shape, such as ``64x3x3x3``."""
    return "x".join(map(str, shape))


def joined(*texts: str) -> str:
    """Join the texts that are not empty by semicolons."""
    return "; ".join(filter(None, texts))


def _without_nan(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _csv_line(values: Iterable[object]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\r\n").writerow(values)  # before Python 3.13 "\r" is quoted only if it ends lines
    return f"{line.getvalue()[:-2]}\n"


def _shape_as_text(value: object) -> object:
    return shape_text(value) if isinstance(value, tuple) else value
