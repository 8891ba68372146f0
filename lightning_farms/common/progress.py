"""The one progress bar, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

Unit = Literal["steps", "bytes", "percent"]
Advance = Callable[[int], None]
"""Is told how much more is done."""
StartBar = Callable[[str, int | None, int], Advance]
"""Puts up a bar in place of the last: what is being done, how much in all if known, how much is done already."""


def progress_is_shown() -> bool:
    """Whether there is somebody to look at a progress bar: stderr is a terminal."""
    return sys.stderr.isatty()


@contextmanager
def progress_bars(*, unit: Unit = "steps", show: bool, stays: bool = False) -> Iterator[StartBar]:
    """Show one bar after the other while something lasts; unless the last one `stays`, they are gone afterwards."""
    console = Console(stderr=True)
    with Progress(*_columns(unit), console=console, transient=not stays, disable=not show) as progress:

        def start(title: str, total: int | None, done: int) -> Advance:
            for earlier in progress.task_ids:
                progress.remove_task(earlier)
            task = progress.add_task(title, total=total, completed=done)
            return lambda count: progress.advance(task, count)

        yield start


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Advance]:
    """Show a bar of steps while something lasts, on a terminal; it is gone afterwards."""
    with progress_bars(show=progress_is_shown()) as start:
        yield start(title, total, 0)


def _columns(unit: Unit) -> tuple[ProgressColumn, ...]:
    title, bar = TextColumn("{task.description}"), BarColumn()
    if unit == "bytes":
        return title, bar, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    if unit == "percent":
        return title, bar, TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn()
    return SpinnerColumn(), title, bar, MofNCompleteColumn(), TimeElapsedColumn()
