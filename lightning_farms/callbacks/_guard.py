"""Handling of faults in this package's own code: each is reported once, and the training goes on."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any, Protocol, TypeVar, cast

from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities import rank_zero_only

from lightning_farms.common.faults import Guarded, guarding
from lightning_farms.common.warning import warn_user

USER_ERRORS = (TypeError, ValueError, MisconfigurationException)  # wrong options and Trainers stop a run at its start

LEFT_OUT = "its state is left out of the checkpoint; training goes on"


@rank_zero_only
def warn(message: str) -> None:
    """Warn at the user's line, in one process of those that train together."""
    warn_user(message)


class _OnOptimizers(Guarded, Protocol):
    def _release(self) -> None:
        """Remove what was put on the optimizers."""

    def _is_needed_elsewhere(self, trainer: Any) -> bool:  # noqa: ANN401
        """Whether the callback takes part in another Trainer's fit, which is still running."""


_Method = TypeVar("_Method", bound=Callable[..., Any])


guarded = guarding()
"""Decorates a hook so that its own faults never end the training; a subclass's code after the call still runs.

Interrupts do end it. Lightning then calls ``on_exception``, which leaves the optimizers as they were.
"""

guarded_at_start = guarding(*USER_ERRORS)
"""Decorates a hook before the training like :func:`guarded`, but lets USER_ERRORS stop the run."""


def guarded_at_end(hook: _Method) -> _Method:
    """Decorate a hook after the training like :func:`guarded`, and leave nothing on the optimizers, whatever happens.

    Nothing is done if another Trainer's fit is still running: a Trainer that evaluates meanwhile must not end it.
    """

    @wraps(hook)
    def guarded_hook(self: _OnOptimizers, trainer: object, *args: object, **options: object) -> None:
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

    return cast("_Method", guarded_hook)


def guarded_value(what: str, instead: Callable[[Any], object]) -> Callable[[_Method], _Method]:
    """Decorate a method so that it warns with `what`, and returns the result of `instead`, if a fault occurs."""

    def decorate(method: _Method) -> _Method:
        @wraps(method)
        def guarded_method(self: Guarded, *args: object) -> object:
            with self._faults.contained(what):
                return method(self, *args)
            return instead(self)

        return cast("_Method", guarded_method)

    return decorate
