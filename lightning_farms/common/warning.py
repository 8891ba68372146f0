"""Warnings at the line of the user's program that led to them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from sysconfig import get_paths

_OWN = str(Path(__file__).parents[1])
_LIBRARIES = (_OWN, "<frozen ", *(get_paths()[name] for name in ("stdlib", "purelib", "platlib")))


def warn_user(message: str) -> None:
    """Warn at the innermost line that is of no library; if there is none, at the innermost one outside this package."""
    files, frame = [], sys._getframe(1)
    while frame is not None:
        files.append(frame.f_code.co_filename)
        frame = frame.f_back  # type: ignore[assignment]
    ways = ((level for level, file in enumerate(files) if not file.startswith(of)) for of in (_LIBRARIES, _OWN))
    found = next((level for way in ways for level in way), 0)
    warnings.warn(message, stacklevel=found + 2)


class WarnOnce:
    """Warns once of each kind of thing.

    Args:
        warn: what gives the warning.

    Example:
        >>> warn = WarnOnce(print)
        >>> warn("start", "it began"); warn("start", "it began again"); warn("end", "it ended")
        it began
        it ended
    """

    def __init__(self, warn: Callable[[str], object] = warn_user) -> None:
        self._warn = warn
        self._known: set[str] = set()

    def __call__(self, kind: str, message: str) -> None:
        """Warn, unless this kind is known."""
        if kind not in self._known:
            self._known.add(kind)
            self._warn(message)

    def silence(self, kind: str) -> None:
        """Warn no more of this kind."""
        self._known.add(kind)
