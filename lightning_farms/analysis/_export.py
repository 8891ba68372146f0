"""Tables of results as CSV text."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from lightning_farms.common.texts import shape_text


def csv_text(records: Iterable[Mapping[str, Any]], columns: Sequence[str]) -> str:
    r"""Return a header and one line per record, with shapes as ``64x3x3x3`` and missing numbers as ``nan``."""
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _shape(record[name]) for name in columns} for record in records)
    return text.getvalue()


def _shape(value: object) -> object:
    return shape_text(value) if isinstance(value, tuple) else value
