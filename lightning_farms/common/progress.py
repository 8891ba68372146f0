"""Progress bars on stderr, one at a time."""

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

from lightning_farms.common.texts import printable

Unit = Literal["steps", "bytes", "percent"]
Advance = Callable[[int], None]
"""Called with the amount of work that was done since the last call."""
StartBar = Callable[[str, int | None, int], Advance]
"""Replaces the last bar by a new one; called with a title, the total amount if known, and the amount already done."""


def progress_is_shown() -> bool:
    """Whether progress bars are shown, which is the case if stderr is a terminal."""
    return sys.stderr.isatty()


@contextmanager
def progress_bars(*, unit: Unit = "steps", show: bool, stays: bool = False) -> Iterator[StartBar]:
    """Show one bar after another within the block; they disappear afterwards, unless the last one `stays`."""
    console = Console(stderr=True)
    with Progress(*_columns(unit), console=console, transient=not stays, disable=not show) as progress:

        def start(title: str, total: int | None, done: int) -> Advance:
            for earlier in progress.task_ids:
                progress.remove_task(earlier)
            task = progress.add_task(printable(title), total=total, completed=done)

            def advance(count: int) -> None:
                progress.update(task, advance=count, at=progress.get_time() - began)

            began = progress.get_time()
            return advance

        yield start


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Advance]:
    """Show a bar of steps within the block if stderr is a terminal; it disappears afterwards."""
    with progress_bars(show=progress_is_shown()) as start:
        yield start(title, total, 0)


def _columns(unit: Unit) -> tuple[ProgressColumn, ...]:
    title, bar = TextColumn("{task.description}", markup=False), BarColumn()
    if unit == "bytes":
        return title, bar, DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()
    if unit == "percent":
        return title, bar, TextColumn("{task.percentage:>3.0f}%"), TimeElapsedColumn(), _TimeLeftColumn()
    return SpinnerColumn(), title, bar, MofNCompleteColumn(), TimeElapsedColumn()


class _TimeLeftColumn(ProgressColumn):
    """Time left at the average speed so far, counted down between two updates."""

    max_refresh = 0.5

    def render(self, task: Task) -> Text:
        left = seconds_left(task.completed, task.total, task.fields.get("at", 0.0), task.elapsed or 0.0)
        return Text("" if left is None else f"{timedelta(seconds=round(left))} left", style="progress.remaining")


def seconds_left(done: float, total: float | None, at: float, now: float) -> float | None:
    """Seconds left at the average speed, if `done` had been reached after `at` seconds; None if unknown.

    Example:
        >>> seconds_left(30, 90, at=10.0, now=12.0)
        18.0
    """
    if not total or not done:
        return None
    return max(0.0, at * (total - done) / done - (now - at))
