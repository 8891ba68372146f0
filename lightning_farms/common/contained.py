"""Faults that end nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def contained(say: Callable[[Exception], object], passing: tuple[type[Exception], ...] = ()) -> Iterator[None]:
    """Say what goes wrong within, and go on behind it.

    Args:
        say: is called with the error.
        passing: types of errors that pass. So do warnings that are to be errors: whoever turns them into errors asks
            for that.

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
