"""What a subcommand says when it fails through the user's input."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

_TRACEBACK_SWITCH = "LIGHTNING_FARMS_TRACEBACK"
_ARGUMENTS = re.compile(r"\barguments? (`\w+`(?:(?: and |, )`\w+`)*)")


def traceback_wanted() -> bool:
    """Whether the environment asks for tracebacks.

    Returns:
        Whether LIGHTNING_FARMS_TRACEBACK is set to anything but 0.
    """
    return os.environ.get(_TRACEBACK_SWITCH, "0") not in ("", "0")


def fail(error: BaseException, message: str | None = None) -> NoReturn:
    """End with an error's message on stderr and exit status 1.

    Args:
        error: What was raised.
        message: What to say about it; the error's own message when left out.

    Raises:
        SystemExit: Always.
    """
    text = message_of(error) if message is None else message
    sys.stderr.write(f"lightning-farms: error: {text}\n({_TRACEBACK_SWITCH}=1 shows where it was raised.)\n")
    raise SystemExit(1) from error


@contextmanager
def failing_on(*mistakes: type[Exception]) -> Iterator[None]:
    """End with a message where the user's input is wrong, in the block; other errors pass.

    Args:
        mistakes: errors that come of the user's input.

    Raises:
        SystemExit: With status 1, in place of such an error, unless tracebacks are wanted.
    """
    try:
        yield
    except mistakes as error:
        if traceback_wanted():
            raise
        fail(error, with_options(str(error)))


def message_of(error: BaseException) -> str:
    """What was raised, without the traceback that a data loader's worker puts before it.

    Args:
        error: What was raised.

    Returns:
        Its message.
    """
    text = str(error).rstrip()
    raised_by_worker = text.startswith("Caught ") and "Original Traceback" in text
    return text.rpartition(f"\n{type(error).__name__}: ")[2] if raised_by_worker else text


def with_options(text: str) -> str:
    """A message of the package for somebody who gave options rather than arguments, which have the same names.

    Args:
        text: the message.

    Returns:
        The message with the options' names.

    Example:
        >>> with_options("Expected argument `window` to be positive, but got 0.")
        'Expected --window to be positive, but got 0.'
    """
    text = text.replace("argument `path`", "the path")
    return _ARGUMENTS.sub(lambda found: re.sub(r"`(\w+)`", r"--\1", found[1]), text)
