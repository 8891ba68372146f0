"""Handling of faults in this package's own code: each is reported once, and the training goes on."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial, wraps
from typing import Any, Protocol, TypeVar, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_warn

from lightning_farms.common.contained import contained

USER_ERRORS = (TypeError, ValueError, MisconfigurationException)  # wrong options and Trainers stop a run at its start

LEFT_OUT = "its state is left out of the checkpoint; training goes on"


class Faults:
    """The faults that one callback, or one analysis, has met, each of which is reported once.

    Interrupts pass through and end the training, and so do warnings that were turned into errors, as the user asked for
    that. Lightning then calls ``on_exception``, which leaves the optimizers as they were.
    """

    def __init__(self, who: str) -> None:
        self._who = who
        self._said: set[str] = set()

    def contained(self, what: str, passing: tuple[type[Exception], ...] = ()) -> AbstractContextManager[None]:
        """Report an error inside the block, and continue after the block."""
        return contained(partial(self.say, what), passing)

    def say(self, what: str, *errors: Exception) -> None:
        """Warn once per cause; errors of one type that have one text, or come from one line of code, share a cause."""
        for error in errors:
            causes = {f"{type(error).__name__}: {error}", _line_of(error)}
            if self._said.isdisjoint(causes):
                rank_zero_warn(f"{self._who}: {what}. {type(error).__name__}: {error}")
            self._said |= causes


def _line_of(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
    return f"{type(error).__name__}: {where or error}"


class _Guarded(Protocol):
    _faults: Faults

    def _release(self) -> None:
        """Remove what was put on the optimizers."""

    def _is_needed_elsewhere(self, trainer: Any) -> bool:  # noqa: ANN401
        """Whether the callback takes part in another Trainer's fit, which is still running."""


_Hook = TypeVar("_Hook", bound=Callable[..., None])
_Method = TypeVar("_Method", bound=Callable[..., Any])


def guarded(hook: _Hook) -> _Hook:
    """Decorate a hook so that its own faults never end the training; a subclass's code after the call still runs."""
    return _guarded(hook, ())


def guarded_at_start(hook: _Hook) -> _Hook:
    """Decorate a hook before the training like :func:`guarded`, but let USER_ERRORS stop the run."""
    return _guarded(hook, USER_ERRORS)


def _guarded(hook: _Hook, passing: tuple[type[Exception], ...]) -> _Hook:
    @wraps(hook)
    def guarded_hook(self: _Guarded, *args: object, **options: object) -> None:
        with self._faults.contained(f"{hook.__name__} failed; training goes on", passing):
            hook(self, *args, **options)

    return cast("_Hook", guarded_hook)


def guarded_at_end(hook: _Hook) -> _Hook:
    """Decorate a hook after the training like :func:`guarded`, and leave nothing on the optimizers, whatever happens.

    Nothing is done if another Trainer's fit is still running: a Trainer that evaluates meanwhile must not end it.
    """

    @wraps(hook)
    def guarded_hook(self: _Guarded, trainer: object, *args: object, **options: object) -> None:
        with self._faults.contained("it could not be found out whether another Trainer's fit is still running"):
            if self._is_needed_elsewhere(trainer):
                return
        try:
            with self._faults.contained(f"{hook.__name__} failed"):
                hook(self, trainer, *args, **options)
        finally:
            for _ in range(2):
                with self._faults.contained("its hooks could be removed from the optimizers only at a second attempt"):
                    self._release()
                    break

    return cast("_Hook", guarded_hook)


def guarded_value(what: str, instead: Callable[[Any], object]) -> Callable[[_Method], _Method]:
    """Decorate a method so that it warns with `what`, and returns the result of `instead`, if a fault occurs."""

    def decorate(method: _Method) -> _Method:
        @wraps(method)
        def guarded_method(self: _Guarded, *args: object) -> object:
            with self._faults.contained(what):
                return method(self, *args)
            return instead(self)

        return cast("_Method", guarded_method)

    return decorate
