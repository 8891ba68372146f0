"""What is done where the update of an optimizer raises: its step hooks do not see exceptions."""

import functools
import types
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

NOTE = (
    "lightning_farms: this was the first step with a group of its own for each layer, which may be the cause."
    " Build its groups with `layerwise_param_groups` of lightning_farms.optim, or use another optimizer."
)
_Listener = Callable[[BaseException], None]


class GuardedStep:
    """Stands on an optimizer before its `step` while anyone listens; schedulers do it in the same way."""

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
        """Let the optimizer's own step be the only one once no one listens, unless someone else stands before it."""
        self.listeners.remove(listener)
        if not self.listeners and vars(self._optimizer).get("step") is self._mine:
            del vars(self._optimizer)["step"]
            if self._former is not None:
                vars(self._optimizer)["step"] = self._former


def guard(optimizer: Optimizer, listener: _Listener) -> GuardedStep:
    """Have a listener called with what an optimizer's step raises; of schedulers that stand before one it is known."""
    known: GuardedStep = getattr(optimizer.step, "farms_guard", None) or GuardedStep(optimizer)
    known.listeners.append(listener)
    return known
