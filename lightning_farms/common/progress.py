"""The one progress bar, on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Literal

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text

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

            def advance(count: int) -> None:
                progress.update(task, advance=count, at=progress.get_time() - began)

            began = progress.get_time()
            return advance

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
        return title, bar, TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), _TimeLeftColumn()
    return SpinnerColumn(), title, bar, MofNCompleteColumn(), TimeElapsedColumn()


class _TimeLeftColumn(ProgressColumn):
    """What the rest takes at the speed of all that is done, counted down between two signs of progress."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = seconds_left(task.completed, task.total, task.fields.get("at", 0.0), task.elapsed or 0.0)
        return Text("" if left is None else f"{timedelta(seconds=round(left))} left", style="progress.remaining")


def seconds_left(done: float, total: float | None, at: float, now: float) -> float | None:
    """Seconds until all is done, of which `done` was there `at` a time, if it goes on like that; None: who knows.

    Example:
        >>> seconds_left(30, 90, at=10.0, now=12.0)
        18.0
    """
    if not total or not done:
        return None
    return max(0.0, at * (total - done) / done - (now - at))
