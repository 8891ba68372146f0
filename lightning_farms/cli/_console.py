"""The console of the subcommands' tables."""

from __future__ import annotations

from typing import IO

from rich.console import Console


def plain_console(*, file: IO[str] | None = None, width: int | None = None, stderr: bool = False) -> Console:
    """Return a console that prints texts as they are; names in a file may look like rich's markup or emoji codes."""
    return Console(file=file, width=width, stderr=stderr, markup=False, emoji=False, highlight=False)
