"""What all data modules of this package are."""

from __future__ import annotations

from collections.abc import Collection, Sized
from typing import TypeVar

from lightning.pytorch import LightningDataModule, Trainer

from lightning_farms.common.lightning_packages import kinds, misconfiguration

DatasetT = TypeVar("DatasetT", bound=Sized)


class DataModule(LightningDataModule):
    """A LightningDataModule that says what is wrong where a Trainer of the package `pytorch_lightning` is given it."""

    @property
    def trainer(self) -> Trainer | None:
        """The Trainer that uses the data, None without one."""
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


def ready(dataset: DatasetT | None, purpose: str) -> DatasetT:
    """A dataset that `setup` has built."""
    if dataset is None:
        raise RuntimeError(
            f"Expected `setup` to have built the {purpose} data, but it has not: call it for that stage."
        )
    return dataset


def length(dataset: Sized | None, purpose: str) -> int:
    """How many items it has."""
    return len(ready(dataset, purpose))


def items_to_predict(count: int, there: Collection[int], processes: int) -> list[int] | None:
    """The items that are not there yet; None where these are all.

    At least one for each process, if need be one again: of nothing, Lightning would not tell that it has ended.
    """
    items = [item for item in range(count) if item not in there] or [count - 1]
    items += items[-1:] * (processes - len(items))
    return items if there or len(items) > count else None
