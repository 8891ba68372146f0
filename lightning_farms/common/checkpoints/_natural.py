"""Natural order of names."""

from __future__ import annotations

import re


def natural(name: str) -> list[tuple[int, str]]:
    """Sorting key that treats runs of digits, of any length, as numbers: ``layer.2`` before ``layer.10``."""
    parts = re.split(r"([0-9]+)", name)
    return [(len(digits := part.lstrip("0")), digits) if n % 2 else (-1, part) for n, part in enumerate(parts)]
