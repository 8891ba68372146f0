"""What outlives a callback's run: its state in checkpoints, and what a child process that trained a copy has found."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, Trainer

from lightning_farms.callbacks._guard import LEFT_OUT, Faults, guarded_at_start, guarded_value
from lightning_farms.callbacks._handover import Handover


class KeptCallback(Callback):
    """A callback with a state, and with results that a user reads; subclasses make the two attributes."""

    _faults: Faults
    _handover: Handover

    @guarded_value(LEFT_OUT, lambda self: {})
    def state_dict(self) -> dict[str, Any]:
        """What a resumption needs, in plain types; empty where a fault keeps it from that, which is said."""
        self._take_over()
        return self._saved()

    @guarded_at_start
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Store the values, which take effect when the run starts; an empty state, and one that fails, is none."""
        if state_dict:
            self._restore(state_dict)

    def _saved(self) -> dict[str, Any]:
        """The state."""
        raise NotImplementedError

    def _restore(self, state: dict[str, Any]) -> None:
        """Take over a state."""
        raise NotImplementedError

    def _results(self) -> dict[str, Any]:
        """What a user reads, and the state, in plain types and tensors."""
        return {"state": self._saved()}

    def _accept(self, results: dict[str, Any]) -> None:
        """Take over what :meth:`_results` gave in a child process."""
        self._restore(results["state"])

    def _hand_over(self, trainer: Trainer) -> None:
        """Leave the results for the process that made the callback, where this is a child of it."""
        if trainer.is_global_zero:
            self._handover.give(self._results())

    def _take_over(self) -> None:
        """Take what a child process has left, before anything is read."""
        with self._faults.contained("what a child process found could not be read"):
            results = self._handover.take()
            if results is not None:
                self._accept(results)
