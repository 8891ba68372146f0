"""Sampler and loader of all data modules, with which an interrupted training resumes an epoch where it stopped."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypedDict, TypeVar

import torch
from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

KeyT = TypeVar("KeyT", covariant=True)
BatchT = TypeVar("BatchT", covariant=True)


class EpochSampler(DistributedSampler[KeyT], ABC):
    """Sampler of an epoch's keys, drawn from (seed, epoch) alone: this process's share, without those already seen.

    It is a DistributedSampler so that Lightning leaves it as it is under a distributed strategy and calls its
    `set_epoch` before each epoch. Every process draws the same epoch; process r takes items r, r + replicas, and so on,
    with the first items repeated at the end if the number is not divisible. Nothing is drawn before the first key is
    requested: by then, a trainer knows the epoch and its progress.

    Args:
        dataset: the dataset that the keys belong to.
        seed: at least 0.
        shuffle: whether the order is random.
        num_replicas: processes that share the items, at least 1.
        rank: this process among them, in [0, num_replicas).
    """

    def __init__(
        self, dataset: Dataset[Any], *, seed: int = 0, shuffle: bool = True, num_replicas: int = 1, rank: int = 0
    ) -> None:
        super().__init__(dataset, num_replicas=num_replicas, rank=rank, shuffle=shuffle, seed=seed)
        self._resumed = (0, 0)
        self._seen_first: Callable[[], int] | None = None

    @abstractmethod
    def keys(self, items: Sequence[int]) -> Iterator[KeyT]:
        """Draw the epoch and yield the keys at some positions of its order, each below the number of items."""

    def resume(self, epoch: int, items: int) -> None:
        """Leave out the items of an epoch that an interrupted run has already seen.

        Args:
            epoch: the interrupted epoch, at least 0; other epochs are whole.
            items: how many of this process's items to leave out, at least 0.
        """
        self._resumed = (epoch, items)

    def resume_first(self, items: Callable[[], int]) -> None:
        """Leave out as many items of the first epoch as `items` returns when its first key is requested."""
        self._seen_first = items

    def __iter__(self) -> Iterator[KeyT]:
        seen = self._seen()
        number = len(self.dataset)  # type: ignore[arg-type]
        share = range(self.rank, self.total_size, self.num_replicas)[seen:]
        yield from self.keys([position % number for position in share])

    def _seen(self) -> int:
        first, self._seen_first = self._seen_first, None
        if first is not None:
            return first()
        epoch, items = self._resumed
        return items if epoch == self.epoch else 0


class EpochLoader(DataLoader[BatchT]):
    """DataLoader that starts an epoch only when the first batch is requested, and that Lightning considers resumable.

    A plain loader starts its workers and draws the order as soon as Lightning prepares the training; in a resumed run,
    that is before the epoch is known.
    """

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        """Go through an epoch."""
        yield from super().__iter__()

    def state_dict(self) -> dict[str, Any]:
        """Return an empty state: the data module and the trainer, restored earlier, know where to resume."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""


class Progress(NamedTuple):
    """The current or next epoch, and how many of its batches are done."""

    epoch: int = 0
    batches: int = 0


def progress_of(trainer: Trainer | None) -> Progress:
    """Return the progress of a training, for a checkpoint written now."""
    if trainer is None:
        return Progress()
    loop: Any = trainer.fit_loop
    epoch = loop.epoch_progress.current
    if epoch.ready <= epoch.processed:
        return Progress(int(epoch.processed))
    return Progress(int(epoch.processed), int(loop.epoch_loop.batch_progress.current.processed))


def batches_to_leave_out(trainer: Trainer | None) -> Callable[[], int] | None:
    """Return a function that tells how many batches of its epoch the checkpoint's training had done.

    Call it when the first batch is requested. It is None except for the first loaders of a training that resumes from a
    checkpoint.
    """
    if trainer is None or trainer.ckpt_path is None or trainer.train_dataloader is not None:
        return None
    return lambda: int(trainer.fit_loop.epoch_loop.batch_progress.current.ready)


class Replica(TypedDict):
    """Number of processes that share the data, and this one's number among them."""

    num_replicas: int
    rank: int


def replica_of(trainer: Trainer | None) -> Replica:
    """Return how the trainer shares the data out among processes."""
    kwargs = (None if trainer is None else trainer.distributed_sampler_kwargs) or {"num_replicas": 1, "rank": 0}
    return Replica(num_replicas=int(kwargs["num_replicas"]), rank=int(kwargs["rank"]))


def own_generator(seed: int) -> torch.Generator:
    """Return a generator for a loader, which would otherwise draw from the global one."""
    return torch.Generator().manual_seed(seed)
