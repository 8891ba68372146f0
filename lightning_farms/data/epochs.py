"""The loader of training windows."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

Batches = DataLoader[tuple[Tensor, Tensor]]


class TrainingLoader(Batches):
    """DataLoader whose epoch starts with its first batch, and that Lightning takes for resumable.

    A plain loader starts its workers, and draws the order, as soon as Lightning prepares the training; for a resumed
    run that is before the epoch is known. Here that waits until the first batch is asked for.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Go through an epoch."""
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Nothing: the data module's state, which Lightning restores earlier, says where to go on."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing to restore.

        Args:
            state_dict: what `state_dict` gave.
        """
