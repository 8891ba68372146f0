"""Progress bars on stderr, where that is a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn


def progress_is_shown() -> bool:
    """Whether there is somebody to look at a progress bar.

    Returns:
        Whether stderr is a terminal.
    """
    return sys.stderr.isatty()


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a bar while something lasts; it is gone afterwards.

    Args:
        title: what is being done.
        total: how many steps there are.

    Yields:
        A function to be called with the number of steps that were made since the last call.
    """
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    with Progress(*columns, console=console, transient=True, disable=not progress_is_shown()) as progress:
        task = progress.add_task(title, total=total)
        yield lambda steps: progress.advance(task, steps)
