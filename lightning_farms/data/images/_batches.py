"""Batches of images: their choice, crops and flips are drawn from (seed, epoch) alone."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_farms.common.seeding import seeded_generator
from lightning_farms.data._normalization import ChannelStatistics
from lightning_farms.data.epochs import EpochLoader, EpochSampler, own_generator
from lightning_farms.data.images._labelled_images import LabelledImages, crop_and_flip, normalise


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
    """Dataset that returns whole batches of images by their keys, shifted within a border of `padding` pixels."""

    def __init__(self, data: LabelledImages, statistics: ChannelStatistics, padding: int) -> None:
        self.data, self.statistics, self.padding = data, statistics, padding

    def __len__(self) -> int:
        return len(self.data.labels)

    def __getitem__(self, key: BatchKey) -> ImageBatch:
        images = crop_and_flip(self.data.images[key.indices], key.shifts, key.flips, self.padding)
        return ImageBatch(normalise(images, self.statistics), self.data.labels[key.indices])


class ImageBatchSampler(EpochSampler[BatchKey]):
    """Sampler of the keys of an epoch's batches: order, shifts and flips. The last batch may be smaller."""

    def __init__(
        self,
        dataset: ImageBatches,
        *,
        batch_size: int,
        shuffle: bool = False,
        augmentation: Augmentation = Augmentation(),  # noqa: B008
        seed: int = 0,
        num_replicas: int = 1,
        rank: int = 0,
    ) -> None:
        super().__init__(dataset, seed=seed, shuffle=shuffle, num_replicas=num_replicas, rank=rank)
        self.batch_size, self.augmentation = batch_size, augmentation

    def __len__(self) -> int:
        return math.ceil(self.num_samples / self.batch_size)

    def keys(self, items: Sequence[int]) -> Iterator[BatchKey]:
        """Draw the epoch and yield the batches of the images at some positions of its order."""
        epoch = self._draw()
        for batch in torch.tensor(items, dtype=torch.int64).split(self.batch_size):
            if len(batch):
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


def image_loader(
    dataset: ImageBatches, sampler: ImageBatchSampler, *, pin_memory: bool = False
) -> EpochLoader[ImageBatch]:
    """Return a loader of whole batches, without workers: images are in memory, a batch takes about a millisecond."""
    return EpochLoader(dataset, batch_size=None, sampler=sampler, pin_memory=pin_memory, generator=own_generator(0))
