"""Base class of all data modules of this package, and helpers that they share."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Sized
from typing import Any, TypeVar

from lightning.pytorch import LightningDataModule, Trainer

from lightning_farms.common.lightning_packages import kinds, misconfiguration
from lightning_farms.common.plain_values import plain_ones

DatasetT = TypeVar("DatasetT", bound=Sized)


class DataModule(LightningDataModule):
    """LightningDataModule that a checkpoint restores with the arguments that it was made with (`load_from_checkpoint`).

    These are kept in `hparams` as plain values, those that have such a form, and are not logged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.hparams.update(plain_ones(_arguments(self)))

    @property
    def trainer(self) -> Trainer | None:
        """The Trainer that uses this data module, or None; one of `pytorch_lightning` is refused."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        if isinstance(trainer, kinds("trainer.Trainer")) and not isinstance(trainer, Trainer):
            raise misconfiguration(
                f"Expected the Trainer of {type(self).__name__} to be that of `lightning.pytorch`, but got one of the "
                "package `pytorch_lightning`, which knows no data module but its own. Import `Trainer` and "
                "`LightningModule` from `lightning.pytorch`: it is the same program under its newer name."
            )
        self._trainer = trainer


def _arguments(module: DataModule) -> dict[str, Any]:
    """Return the arguments that a module is being made with: those of its most derived class's constructor."""
    found: dict[str, Any] = {}
    frame = inspect.currentframe()
    frame = frame and frame.f_back
    while frame is not None and frame.f_code.co_name == "__init__":
        names, _, keywords, values = inspect.getargvalues(frame)
        if values.get(names[0]) is not module:
            break
        found = {name: values[name] for name in names[1:]} | values.get(keywords or "", {})
        frame = frame.f_back
    return found


def ready(dataset: DatasetT | None, purpose: str) -> DatasetT:
    """Return a dataset that `setup` has built; raise an error if it has not."""
    if dataset is None:
        raise RuntimeError(
            f"Expected `setup` to have built the {purpose} data, but it has not: call it for that stage."
        )
    return dataset


def length(dataset: Sized | None, purpose: str) -> int:
    """Return the number of items of a dataset that `setup` has built."""
    return len(ready(dataset, purpose))


def items_to_predict(count: int, there: Collection[int], processes: int) -> list[int] | None:
    """Return the items that are not predicted yet, or None if these are all items.

    Each process gets at least one item, if necessary one that is there already: without any item, Lightning would not
    report the end of the prediction.
    """
    items = [item for item in range(count) if item not in there] or [count - 1]
    items += items[-1:] * (processes - len(items))
    return items if there or len(items) > count else None
