"""Base class of the data modules of labelled images."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch

from lightning_farms.common.arguments import check_at_least, check_share
from lightning_farms.data._data_module import DataModule
from lightning_farms.data._normalization import ChannelStatistics
from lightning_farms.data.epochs import EpochLoader, batches_to_leave_out, replica_of
from lightning_farms.data.images._batches import Augmentation, ImageBatch, ImageBatches, ImageBatchSampler, image_loader
from lightning_farms.data.images._labelled_images import TrainAndTest, image_statistics, stratified_split

__all__ = ["ImageDataModule", "TrainAndTest"]

_STAGES = ("fit", "validate", "test", "predict")


class ImageDataModule(DataModule, ABC):
    """Labelled images in memory, normalised, with random crops and flips for training.

    A batch is a pair (images, labels): float32 (batch, 3, height, width) and int64 (batch,). Order, crops and flips of
    an epoch depend on (seed, epoch) alone, so that a resumed run sees the same batches as an uninterrupted one, even if
    it resumes in the middle of an epoch; under a distributed strategy, the processes share them out.

    Args:
        num_classes: number of classes, at least 2.
        batch_size: images in a batch (of one process), at least 1.
        augmentation: random changes of training images.
        val_fraction: 0: validate on the test images, as the paper does. Above 0 and below 1: hold out that share of
            each class of the training images instead.
        seed: seed of order, crops and flips, at least 0; when left out, `torch.initial_seed()` at the start of the
            training, which is the seed that `seed_everything` was given.
        split_seed: seed of the choice of held-out images, at least 0.
        pin_memory: whether loaders copy batches to pinned memory.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        num_classes: int,
        *,
        batch_size: int,
        augmentation: Augmentation,
        val_fraction: float,
        seed: int | None,
        split_seed: int,
        pin_memory: bool,
    ) -> None:
        super().__init__()
        check_at_least(1, batch_size=batch_size)
        check_at_least(0, padding=augmentation.padding, seed=0 if seed is None else seed, split_seed=split_seed)
        check_share(val_fraction=val_fraction)
        self.num_classes = num_classes
        self.batch_size, self.augmentation, self.val_fraction = batch_size, augmentation, val_fraction
        self.seed, self.split_seed, self.pin_memory = seed, split_seed, pin_memory
        self._parts: dict[str, ImageBatches] = {}

    @abstractmethod
    def read(self) -> TrainAndTest:
        """Read the images.

        Returns:
            Training and test images with 3 channels.
        """

    @property
    def statistics(self) -> ChannelStatistics:
        """Mean and standard deviation of the training images, by which all are normalised; known after `setup`."""
        return self._part("train").statistics

    def setup(self, stage: str) -> None:
        """Read the images, hold out a part of them if asked to, and measure mean and standard deviation.

        Args:
            stage: "fit", "validate", "test" or "predict".

        Raises:
            ValueError: an unknown stage, or unsuitable data.
            OSError: there are no data, or they are damaged.
        """
        if stage not in _STAGES:
            raise ValueError(f"Expected argument `stage` to be one of {list(_STAGES)}, but got {stage!r}.")
        if self._parts:
            return
        train, test = self.read()
        kept, held_out = stratified_split(train.labels, self.val_fraction, self.split_seed)
        val = train.part(held_out) if self.val_fraction > 0 else test
        train = train.part(kept) if self.val_fraction > 0 else train
        statistics = image_statistics(train.images)
        padding = self.augmentation.padding
        self._parts = {
            "train": ImageBatches(train, statistics, padding),
            "val": ImageBatches(val, statistics, 0),
            "test": ImageBatches(test, statistics, 0),
        }

    def train_dataloader(self) -> EpochLoader[ImageBatch]:
        """Load training images in random order, cropped and flipped; this process's share of them."""
        images = self._part("train")
        sampler = ImageBatchSampler(
            images,
            batch_size=self.batch_size,
            shuffle=True,
            augmentation=self.augmentation,
            seed=torch.initial_seed() if self.seed is None else self.seed,
            **replica_of(self.trainer),
        )
        batches = batches_to_leave_out(self.trainer)
        if batches is not None:
            sampler.resume_first(lambda: batches() * self.batch_size)
        return image_loader(images, sampler, pin_memory=self.pin_memory)

    def val_dataloader(self) -> EpochLoader[ImageBatch]:
        """Load validation images in order."""
        return self._in_order("val")

    def test_dataloader(self) -> EpochLoader[ImageBatch]:
        """Load test images in order."""
        return self._in_order("test")

    def predict_dataloader(self) -> EpochLoader[ImageBatch]:
        """Load test images in order."""
        return self._in_order("test")

    def _in_order(self, name: str) -> EpochLoader[ImageBatch]:
        images = self._part(name)
        sampler = ImageBatchSampler(images, batch_size=self.batch_size, **replica_of(self.trainer))
        return image_loader(images, sampler, pin_memory=self.pin_memory)

    def _part(self, name: str) -> ImageBatches:
        if name not in self._parts:
            raise RuntimeError(f"Expected `setup` to have read the {name} images, but it has not: call it first.")
        return self._parts[name]
