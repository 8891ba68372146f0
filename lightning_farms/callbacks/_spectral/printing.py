"""Printing that never ends the program: the reader of the standard output may have gone, or its disk be full."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import TextIOWrapper

from rich.console import Console
from rich.table import Table


class _Console(Console):
    """Rich's own would point the user's standard output elsewhere and raise SystemExit."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError("nobody reads the standard output")


def print_table(table: Table) -> None:
    """Print it, or raise an OSError.

    What cannot be written is left in no buffer, where it would turn into an error at the interpreter's exit: it goes to
    the file itself, behind what the user's program has printed so far.
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
    """Have rich's way out of the program where a pipe is broken, SystemExit, be an error like others."""
    try:
        yield
    except SystemExit as error:
        raise BrokenPipeError("nobody reads the standard output") from error


def _descriptor() -> int | None:
    """Of the standard output; None where it is no plain file (a notebook's, one that copies elsewhere, none at all)."""
    if type(sys.stdout) is not TextIOWrapper:
        return None
    try:
        return sys.stdout.fileno()
    except (OSError, ValueError):
        return None
