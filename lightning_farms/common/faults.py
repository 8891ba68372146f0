"""Faults of this package's own code, each of which is reported once, after which the program goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, wraps
from typing import Any, Protocol, TypeVar, cast

from lightning_farms.common.contained import contained
from lightning_farms.common.warning import warn_user


class Faults:
    """The faults that one callback, or one analysis, has met, each of which is reported once.

    Interrupts pass through, and so do warnings that were turned into errors, as the user asked for that.

    Args:
        who: the name with which the reports begin.
        warn: what gives the warnings.
    """

    def __init__(self, who: str, warn: Callable[[str], object] = warn_user) -> None:
        self._who, self._warn = who, warn
        self._said: set[str] = set()

    def contained(self, what: str, passing: tuple[type[Exception], ...] = ()) -> AbstractContextManager[None]:
        """Report an error inside the block, and continue after the block."""
        return contained(partial(self.say, what), passing)

    def say(self, what: str, *errors: Exception) -> None:
        """Warn once per cause; errors of one type that have one text, or come from one line of code, share a cause."""
        for error in errors:
            causes = {f"{type(error).__name__}: {error}", _line_of(error)}
            if self._said.isdisjoint(causes):
                self._warn(f"{self._who}: {what}. {type(error).__name__}: {error}")
            self._said |= causes


class Guarded(Protocol):
    """An object whose methods are guarded."""

    _faults: Faults


_Hook = TypeVar("_Hook", bound=Callable[..., None])


def guarding(*passing: type[Exception]) -> Callable[[_Hook], _Hook]:
    """Make a decorator for hooks, so that their own faults, except the types `passing`, never end the training."""

    def decorate(hook: _Hook) -> _Hook:
        @wraps(hook)
        def guarded_hook(self: Guarded, *args: Any, **options: Any) -> None:  # noqa: ANN401
            with self._faults.contained(f"{hook.__name__} failed; training goes on", passing):
                hook(self, *args, **options)

        return cast("_Hook", guarded_hook)

    return decorate


def _line_of(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__name__}: {where or error}"
