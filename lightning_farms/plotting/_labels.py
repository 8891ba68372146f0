"""Helpers that fit many or long names to an axis."""

from __future__ import annotations

import math
import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axis import Axis

_NUMBER = re.compile(r"\d+")


def thinned(count: int, room: int) -> list[int]:
    """Choose evenly spaced positions to label, including the first."""
    step = max(1, -(-count // room))
    return list(range(0, count, step))


def shortened(name: str, width: int = 34) -> str:
    """Cut the middle out of a long name, or, if that would remove a number, cut its parts to their first letters."""
    cut = without_middle(name, width)
    if " " in name or _NUMBER.findall(cut) == _NUMBER.findall(name):
        return cut
    parts = name.split(".")
    for place, part in enumerate(parts[:-1]):
        if len(".".join(parts)) > width and not part.isdecimal():
            parts[place] = part[:1]
    return without_middle(".".join(parts), width)


def literal(text: str) -> str:
    """Keep matplotlib from parsing a text as mathematics."""
    return text.replace("$", r"\$")


def without_middle(text: str, width: int) -> str:
    """Cut the middle out of a long text."""
    tail = (width - 1) // 2
    return text if len(text) <= width else f"{text[: width - 1 - tail]}…{text[-tail:]}"


def label_within_a_decade(axis: Axis) -> None:
    """Label a logarithmic axis with fewer than two powers of ten by plain numbers, as its own labels would overlap."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator

    low, high = (math.log10(end) for end in axis.get_view_interval())
    if math.floor(high) - math.ceil(low) < 1:
        axis.set_major_locator(
            LogLocator(subs=(1, 2, 5)) if high - low > math.log10(5) else MaxNLocator(5, steps=(1, 2, 5, 10))
        )
        axis.set_major_formatter("{x:.6g}")
        axis.set_minor_locator(NullLocator())
