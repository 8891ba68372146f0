"""Helpers of all subcommands: the version, and the messages and exit statuses of failures."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from io import TextIOWrapper
from typing import NoReturn

from lightning_farms.common.texts import printable

LINES = "\n\t"  # control characters of a text of several lines
BROKEN_PIPE = 141  # 128 plus the number of the signal, as in shells
_TRACEBACK_SWITCH = "LIGHTNING_FARMS_TRACEBACK"
_ARGUMENTS = re.compile(r"\barguments? (`\w+`(?:(?: and |, )`\w+`)*)")


def package_version() -> str:
    """The installed version, or a note that the package is not installed."""
    try:
        return version("lightning-farms")
    except PackageNotFoundError:
        return "(run from its sources, not installed)"


def traceback_wanted() -> bool:
    """Whether the environment asks for tracebacks: LIGHTNING_FARMS_TRACEBACK is set to anything but 0."""
    return os.environ.get(_TRACEBACK_SWITCH, "0") not in ("", "0")


def fail(error: BaseException, message: str | None = None) -> NoReturn:
    """End with exit status 1 and a message on stderr, by default the error's own."""
    in_vain = _flush_or_drop()
    text = message_of(error) if message is None else message
    text = _of_stdout(in_vain) if in_vain is not None and isinstance(error, OSError) else text
    hint = f"({_TRACEBACK_SWITCH}=1 shows where it was raised.)"
    with suppress(OSError):  # nobody reads it
        sys.stderr.write(f"lightning-farms: error: {printable(text, but=LINES)}\n{hint}\n")
    raise SystemExit(1) from error


def say(text: str) -> None:
    """Write a line to stderr."""
    sys.stderr.write(f"{printable(text)}\n")


@contextmanager
def writing_to_stdout() -> Iterator[None]:
    """End with status 141 if the reader of stdout is gone, or with a message and 1 if stdout cannot be written to.

    Letters that its encoding lacks are escaped, as on stderr. What is left in the buffer is written at the end or
    dropped, as Python would complain about it when closing stdout.
    """
    if isinstance(sys.stdout, TextIOWrapper) and sys.stdout.errors == "strict":
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        yield
        sys.stdout.flush()
    except BrokenPipeError:
        _drop_stdout()
        raise SystemExit(BROKEN_PIPE) from None
    except OSError as error:
        _drop_stdout()
        if traceback_wanted():
            raise
        fail(error, _of_stdout(error))
    except SystemExit as ended:
        _flush_or_drop()
        if isinstance(ended.__context__, BrokenPipeError):  # rich would end with status 1
            raise SystemExit(BROKEN_PIPE) from None
        raise


def _of_stdout(error: OSError) -> str:
    return (
        f"Expected stdout to be writable, but writing failed: {error.strerror or error}. Send it to a place with room."
    )


def _flush_or_drop() -> OSError | None:
    try:
        sys.stdout.flush()
    except OSError as error:
        _drop_stdout()
        return error
    return None


def _drop_stdout() -> None:
    with suppress(OSError, ValueError):  # a stdout without a file
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def failing_on(*mistakes: type[Exception], **positional: str) -> Iterator[None]:
    """Turn errors caused by the user's input into a message and exit status 1, unless tracebacks are wanted.

    `positional` has the command line's names of arguments that are not options there, see `with_options`.
    """
    try:
        yield
    except BrokenPipeError:
        raise
    except mistakes as error:
        if traceback_wanted():
            raise
        fail(error, with_options(message_of(error), **positional))


def message_of(error: BaseException) -> str:
    """Return an error's message, without the traceback that a data loader's worker puts before it."""
    if isinstance(error, OSError) and type(error).__str__ is OSError.__str__ and error.strerror and error.filename:
        if isinstance(error, FileNotFoundError):
            return f"Expected {str(error.filename)!r} to be there, but: {error.strerror}."
        return (
            f"Expected {str(error.filename)!r} to be a path that can be used, but the system says: "
            f"{error.strerror}. Give another path, or change its permissions."
        )
    text = str(error).rstrip()
    raised_by_worker = text.startswith("Caught ") and "Original Traceback" in text
    return text.rpartition(f"\n{type(error).__name__}: ")[2] if raised_by_worker else text


def with_options(text: str, /, **positional: str) -> str:
    """Rewrite a message about arguments for a user of the command line, where they are options of the same names.

    Example:
        >>> with_options("Expected argument `window` to be positive, but got 0.")
        'Expected --window to be positive, but got 0.'
        >>> with_options("Expected argument `name` to be known, but got 'x'.", name="NAME")
        "Expected NAME to be known, but got 'x'."
    """
    for argument, called in {"path": "the path", **positional}.items():
        text = text.replace(f"argument `{argument}`", called)
    return _ARGUMENTS.sub(lambda found: re.sub(r"`(\w+)`", r"--\1", found[1]), text)


def renamed(text: str, called: Mapping[str, str]) -> str:
    """Rewrite a message about arguments, all of which are in `called`, in the names that it gives them.

    Example:
        >>> renamed("Expected argument `path` to be a file.", {"path": "--data.path"})
        'Expected --data.path to be a file.'
    """

    def rename(found: re.Match[str]) -> str:
        names = re.findall(r"`(\w+)`", found[1])
        known = all(name in called for name in names)
        return re.sub(r"`(\w+)`", lambda name: called[name[1]], found[1]) if known else found[0]

    return _ARGUMENTS.sub(rename, text)
