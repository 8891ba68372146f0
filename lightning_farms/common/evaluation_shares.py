"""Detection of the items of an evaluation that a distributed sampler repeats to make all shares equal in size."""

from lightning.pytorch import Trainer
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch.utils.data import DistributedSampler


def evaluation_loaders(trainer: Trainer) -> list[object]:
    """The data loaders of the running validation or test."""
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    flat: list[object] = CombinedLoader(loaders).flattened
    return flat


def own_items(loader: object, seen: int, batch: int) -> int:
    """Number of a process's next items that are not repetitions by which a distributed sampler fills up its shares.

    Example:
        >>> from torch.utils.data import DataLoader
        >>> sampler = DistributedSampler(range(3), num_replicas=2, rank=1, shuffle=False)
        >>> own_items(DataLoader(range(3), sampler=sampler), seen=0, batch=2)
        1
    """
    sampler = getattr(loader, "sampler", None)
    if not isinstance(sampler, DistributedSampler):
        return batch
    own = len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]
    return min(batch, max(0, own - seen))
