"""Base class of callbacks whose state is kept in checkpoints and whose results come back from child processes."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from lightning_farms.callbacks._guard import LEFT_OUT, guarded_at_start, guarded_value
from lightning_farms.callbacks._handover import Handover
from lightning_farms.common.faults import Faults


class KeptCallback(Callback):
    """A callback with a state, and with results that a user reads; subclasses create the two attributes."""

    _faults: Faults
    _handover: Handover

    @guarded_value(LEFT_OUT, lambda self: {})
    def state_dict(self) -> dict[str, Any]:
        """Return what a resumed run needs, in plain types; empty, with a warning, if a fault occurs."""
        self._take_over()
        return self._saved()

    @guarded_at_start
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the values, which take effect when the run starts; an empty state is ignored, a fault only reported."""
        if state_dict:
            self._restore(state_dict)

    def _saved(self) -> dict[str, Any]:
        """Return the state."""
        raise NotImplementedError

    def _restore(self, state: dict[str, Any]) -> None:
        """Load a state."""
        raise NotImplementedError

    def _results(self) -> dict[str, Any]:
        """Return the state, and the results that a user reads, in plain types and tensors."""
        return {"state": self._saved()}

    def _accept(self, results: dict[str, Any]) -> None:
        """Load what :meth:`_results` returned in a child process."""
        self._restore(results["state"])

    def _hand_over(self, trainer: Trainer) -> None:
        """Give the results to the process that made the callback, if this is its child."""
        if trainer.is_global_zero:
            self._handover.give(self._results())

    def _take_over(self) -> None:
        """Load the results that a child process has left, before anything is read."""
        with self._faults.contained("the results of a child process could not be read"):
            results = self._handover.take()
            if results is not None:
                self._accept(results)
