"""Names in natural order."""

from __future__ import annotations

import re


def natural(name: str) -> list[tuple[int, str]]:
    """Sorting key that takes runs of digits as numbers: ``layer.2`` before ``layer.10``."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
