"""Whole batches of images: which ones and how they are cropped and flipped, drawn from (seed, epoch) alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from lightning_farms.common.seeding import seeded_generator
from lightning_farms.data.images._labelled_images import LabelledImages, crop_and_flip, normalise
from lightning_farms.data.normalization import ChannelStatistics


class Augmentation(NamedTuple):
    """Random changes of training images.

    Attributes:
        padding: black border within which an image is shifted at random, in pixels; 0 for none.
        flip: whether an image is mirrored left to right with probability one half.
    """

    padding: int = 0
    flip: bool = False


class BatchKey(NamedTuple):
    """Which images make up a batch, and how each is changed: tensors of shape (batch,), (batch, 2), (batch,)."""

    indices: Tensor
    shifts: Tensor
    flips: Tensor


class ImageBatch(NamedTuple):
    """A batch: normalised images, float32 (batch, channels, height, width), and labels, int64 (batch,)."""

    images: Tensor
    labels: Tensor


class ImageBatches(Dataset[ImageBatch]):
    """Batches of images by their keys.

    Args:
        data: the images.
        statistics: mean and standard deviation to normalise by.
        padding: border within which images are shifted.
    """

    def __init__(self, data: LabelledImages, statistics: ChannelStatistics, padding: int) -> None:
        self.data, self.statistics, self.padding = data, statistics, padding

    def __len__(self) -> int:
        return len(self.data.labels)

    def __getitem__(self, key: BatchKey) -> ImageBatch:
        images = crop_and_flip(self.data.images[key.indices], key.shifts, key.flips, self.padding)
        return ImageBatch(normalise(images, self.statistics), self.data.labels[key.indices])


class ImageBatchSampler(DistributedSampler[BatchKey]):
    """Keys of an epoch's batches, drawn from (seed, epoch) alone, and this process's share of them.

    It is a DistributedSampler so that Lightning leaves it as it is under a distributed strategy and calls its
    `set_epoch` before each epoch. Every process draws the same epoch; process r takes images r, r + replicas, and so
    on, the first images repeated at the end where the number is not divisible.

    Args:
        dataset: the images.
        batch_size: images in a batch of one process, at least 1; the last batch may be smaller.
        shuffle: whether the order is random.
        augmentation: what is changed at random.
        seed: at least 0.
        first_batch: called when the first batch of the first iteration is asked for: how many batches of that epoch
            are done already. Later iterations start at 0.
        replica: number of processes that share the images, and this one's number among them, from 0.
    """

    def __init__(
        self,
        dataset: ImageBatches,
        *,
        batch_size: int,
        shuffle: bool = False,
        augmentation: Augmentation = Augmentation(),  # noqa: B008
        seed: int = 0,
        first_batch: Callable[[], int] | None = None,
        replica: tuple[int, int] = (1, 0),
    ) -> None:
        super().__init__(dataset, num_replicas=replica[0], rank=replica[1], shuffle=shuffle, seed=seed)
        self.batch_size, self.augmentation = batch_size, augmentation
        self._first_batch = first_batch

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self.batch_size)

    def __iter__(self) -> Iterator[BatchKey]:
        first_batch, self._first_batch = self._first_batch, None
        return self._keys(first_batch)

    def _keys(self, first_batch: Callable[[], int] | None) -> Iterator[BatchKey]:
        """Nothing is drawn before the first key is asked for: a trainer knows the epoch and its progress by then."""
        epoch = self._draw()
        share = torch.arange(self.rank, self.rank + self.total_size, self.num_replicas) % len(epoch.indices)
        for batch in share.split(self.batch_size)[0 if first_batch is None else first_batch() :]:
            yield BatchKey(*(part[batch] for part in epoch))

    def _draw(self) -> BatchKey:
        number = len(self.dataset)  # type: ignore[arg-type]
        generator = seeded_generator((self.seed, self.epoch))
        padding, flip = self.augmentation
        return BatchKey(
            torch.randperm(number, generator=generator) if self.shuffle else torch.arange(number),
            torch.randint(2 * padding + 1, (number, 2), generator=generator),
            (torch.rand(number, generator=generator) < 0.5) & flip,
        )


class ImageLoader(DataLoader[ImageBatch]):
    """Loads whole batches; Lightning takes it for resumable within an epoch, which it is through its sampler.

    Worker processes are of no use: the images are in memory, and a batch is made in about a millisecond.

    Args:
        dataset: the images.
        sampler: says which batches.
        pin_memory: whether batches are copied to pinned memory.
    """

    def __init__(self, dataset: ImageBatches, *, sampler: ImageBatchSampler, pin_memory: bool = False) -> None:
        # A generator of its own keeps the loader from drawing on the global one.
        super().__init__(
            dataset, batch_size=None, sampler=sampler, pin_memory=pin_memory, generator=torch.Generator().manual_seed(0)
        )

    def state_dict(self) -> dict[str, Any]:
        """Nothing: where an epoch goes on after a resume is the trainer's to say."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Do nothing."""
