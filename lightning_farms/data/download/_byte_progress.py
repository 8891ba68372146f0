"""Progress bars in bytes, on stderr where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

Advance = Callable[[int], object]
"""Is told how many more bytes are done."""
StartBar = Callable[[str, int | None, int], Advance]
"""Puts up a bar in place of the last: what is being done, bytes in all if known, bytes already done."""


@contextmanager
def byte_progress(*, show: bool) -> Iterator[StartBar]:
    """Show one bar after the other while something lasts; they are gone afterwards.

    Args:
        show: Whether to show anything.

    Yields:
        A function that puts up a bar.
    """
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    disable = not (show and sys.stderr.isatty())
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=disable) as progress:

        def start(title: str, total: int | None, done: int) -> Advance:
            for earlier in progress.task_ids:
                progress.remove_task(earlier)
            task = progress.add_task(title, total=total, completed=done)
            return lambda count: progress.advance(task, count)

        yield start
