"""Numbers of things and of bytes as text."""

from __future__ import annotations


def counted(number: int, noun: str, plural: str = "") -> str:
    """A number of things, in the singular for one.

    Example:
        >>> counted(1, "layer"), counted(2, "layer"), counted(2, "trajectory", "trajectories")
        ('1 layer', '2 layers', '2 trajectories')
    """
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def size_text(size: float) -> str:
    """A number of bytes, with one decimal place.

    Example:
        >>> size_text(12_345), size_text(54_975_581_388), size_text(7)
        ('12.3 kB', '55.0 GB', '7 bytes')
    """
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= factor:
            return f"{size / factor:,.1f} {unit}"
    return f"{size:.0f} bytes"
