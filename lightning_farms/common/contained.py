"""Containment of errors that must not end the program."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def contained(say: Callable[[Exception], object], passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Report an error inside the block, and continue after the block.

    Args:
        say: called with the error.
        passing: types of errors that pass through. Warnings that were turned into errors pass through too, as the user
            asked for that.

    Example:
        >>> with contained(lambda error: print(f"not written: {error!r}")):
        ...     {}["a"]
        not written: KeyError('a')
    """
    try:
        yield
    except Warning:
        raise
    except passing:
        raise
    except Exception as error:
        say(error)
