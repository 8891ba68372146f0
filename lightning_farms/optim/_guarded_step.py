"""Callbacks for exceptions raised by an optimizer's update, which its step hooks do not see."""

import functools
import types
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

NOTE = (
    "lightning_farms: this was the first step with a group of its own for each layer, which may be the cause. Build "
    "the optimizer's groups with `layerwise_param_groups` of lightning_farms.optim, or use another optimizer."
)
_Listener = Callable[[BaseException], None]


class GuardedStep:
    """Wraps `step` on an optimizer instance while anyone listens, in the same way as schedulers do."""

    def __init__(self, optimizer: Optimizer) -> None:
        self._optimizer = optimizer
        self._former = vars(optimizer).get("step")
        self.listeners: list[_Listener] = []
        step = optimizer.step

        @functools.wraps(getattr(step, "__func__", step))
        def guarded(itself: Optimizer, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            try:
                return step(*args, **kwargs)
            except BaseException as error:
                for listener in self.listeners:
                    listener(error)
                raise

        vars(guarded)["farms_guard"] = self
        self._mine = vars(optimizer)["step"] = types.MethodType(guarded, optimizer)

    def leave(self, listener: _Listener) -> None:
        """Restore the optimizer's own step once no one listens, unless someone else has wrapped it meanwhile."""
        self.listeners.remove(listener)
        if not self.listeners and vars(self._optimizer).get("step") is self._mine:
            del vars(self._optimizer)["step"]
            if self._former is not None:
                vars(self._optimizer)["step"] = self._former


def guard(optimizer: Optimizer, listener: _Listener) -> GuardedStep:
    """Call a listener with the exceptions of an optimizer's step; a guard beneath a scheduler's wrapper is reused."""
    known: GuardedStep = getattr(optimizer.step, "farms_guard", None) or GuardedStep(optimizer)
    known.listeners.append(listener)
    return known
