"""What a subcommand says when it fails through the user's input."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

_TRACEBACK_SWITCH = "LIGHTNING_FARMS_TRACEBACK"


def traceback_wanted() -> bool:
    """Whether the environment asks for tracebacks.

    Returns:
        Whether LIGHTNING_FARMS_TRACEBACK is set to anything but 0.
    """
    return os.environ.get(_TRACEBACK_SWITCH, "0") not in ("", "0")


def fail(error: BaseException) -> NoReturn:
    """End with an error's message on stderr and exit status 1.

    Args:
        error: What was raised.

    Raises:
        SystemExit: Always.
    """
    sys.stderr.write(
        f"lightning-farms: error: {message_of(error)}\n({_TRACEBACK_SWITCH}=1 shows where it was raised.)\n"
    )
    raise SystemExit(1) from error


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
