"""A remark on exceptions that an optimizer raises when it first meets groups of ours."""

import functools
import types
from collections.abc import Callable
from typing import Any

from torch.optim import Optimizer

_NOTE = (
    "lightning_farms: this was the first step with a group of its own for each layer, which may be the cause."
    " Build its groups with `layerwise_param_groups` of lightning_farms.optim, or use another optimizer."
)


class NotedStep:
    """Stands on an optimizer before its `step` until taken away, and adds the note to what that raises while `asked`.

    (Step hooks do not see exceptions. Schedulers of learning rates stand there in the same way.)
    """

    def __init__(self, optimizer: Optimizer, asked: Callable[[], bool]) -> None:
        self._optimizer = optimizer
        self._former = vars(optimizer).get("step")
        step = optimizer.step

        @functools.wraps(getattr(step, "__func__", step))
        def noted(itself: Optimizer, *args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            try:
                return step(*args, **kwargs)
            except Exception as error:
                if asked():
                    error.add_note(_NOTE)
                raise

        self._mine = vars(optimizer)["step"] = types.MethodType(noted, optimizer)

    def take_away(self) -> None:
        """Let the optimizer's own step be the only one, unless someone else stands before this one."""
        if vars(self._optimizer).get("step") is self._mine:
            del vars(self._optimizer)["step"]
            if self._former is not None:
                vars(self._optimizer)["step"] = self._former
