"""Tables of results as CSV and JSON text."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from lightning_farms.analysis.table import shape_text


def csv_text(records: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    r"""One line a record, after a header; shapes as ``64x3x3x3``, missing numbers as ``nan``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _shape(record[name]) for name in columns} for record in records)
    return text.getvalue()


def json_text(content: Mapping[str, Any]) -> str:
    r"""Indented JSON, missing numbers as ``null``."""
    return json.dumps(_without_nan(content), indent=2) + "\n"


def write_if_asked(text: str, path: str | PathLike[str] | None) -> str:
    """Write a text to a file, if there is a path."""
    if path is not None:
        Path(path).write_text(text, encoding="utf-8", newline="")
    return text


def _shape(value: object) -> object:
    return shape_text(value) if isinstance(value, tuple) else value


def _without_nan(value: Any) -> Any:  # noqa: ANN401
    if isinstance(value, Mapping):
        return {str(key): _without_nan(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nan(entry) for entry in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
