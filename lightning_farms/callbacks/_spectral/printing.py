"""Printing that never ends the program, even if the reader of the standard output is gone or its disk is full."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper

from rich.console import Console
from rich.table import Table


class _Console(Console):
    """A rich Console that raises a plain error; rich's own would redirect the standard output and raise SystemExit."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("nobody reads the standard output")


def print_table(table: Table) -> None:
    """Print a table, or raise an OSError.

    The table is written directly to the file descriptor, after what the user's program has printed so far. Left in a
    buffer, text that cannot be written would cause an error at the interpreter's exit.
    """
    console = _Console()
    file = _descriptor()
    if file is None or console.is_jupyter or console.legacy_windows:
        console.print(table)
        return
    with console.capture() as captured:
        console.print(table)
    sys.stdout.flush()
    left = captured.get().replace("\n", os.linesep).encode(sys.stdout.encoding, "replace")
    while left:
        left = left[os.write(file, left) :]


@contextmanager
def output_errors() -> Iterator[None]:
    """Turn the SystemExit that rich raises for a broken pipe into a BrokenPipeError."""
    try:
        yield
    except SystemExit as error:
        raise BrokenPipeError("nobody reads the standard output") from error


def _descriptor() -> int | None:
    """Descriptor of the standard output; None if it is no plain file (a notebook's, one that copies elsewhere)."""
    if type(sys.stdout) is not TextIOWrapper:
        return None
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError):
        return None
