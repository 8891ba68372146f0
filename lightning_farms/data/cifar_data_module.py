"""Data module for CIFAR-10 and CIFAR-100."""

from __future__ import annotations

from pathlib import Path

from lightning_farms.common.user_cache import user_cache
from lightning_farms.data.image_data_module import ImageDataModule
from lightning_farms.data.images._batches import Augmentation
from lightning_farms.data.images._labelled_images import TrainAndTest
from lightning_farms.data.images.cifar import SOURCES, Classes, download_cifar, read_cifar


class CIFARDataModule(ImageDataModule):
    """CIFAR-10 or CIFAR-100 from the original python-version archive, with the usual augmentation.

    Training images are shifted by up to `padding` pixels within a black border and mirrored with probability one half;
    all are normalised by mean and standard deviation of the training images. A batch is a pair (images, labels):
    float32 (batch, 3, 32, 32) and int64 (batch,). Order, crops and flips of an epoch depend on (seed, epoch) alone, so
    that a resumed run sees the same batches as an uninterrupted one, even if it resumes in the middle of an epoch;
    under a distributed strategy, the processes share them out.

    Without a path, the archive is downloaded at the first use (about 170 MB, by pooch, with its MD5) and kept in
    `cache_dir`.

    Args:
        path: cifar-100-python.tar.gz (cifar-10-python.tar.gz), the folder that it unpacks to, or a folder that holds
            either; when left out, the archive is downloaded.
        classes: 100 or 10.
        cache_dir: folder of downloaded archives; lightning_farms in the user's cache folder ($XDG_CACHE_HOME or
            ~/.cache) when left out.
        url: address of a mirror to download from; the original address when left out.
        checksum: whether an archive's MD5 must be the original's; False for your own archive in the same layout.
        batch_size: images in a batch (of one process), at least 1.
        padding: black border within which training images are shifted, in pixels, at least 0.
        flip: whether training images are mirrored at random.
        val_fraction: 0: validate on the test images, as the paper does. Above 0 and below 1: hold out that share of
            each class of the training images instead.
        seed: seed of order, crops and flips, at least 0; when left out, `torch.initial_seed()` at the start of the
            training, which is the seed that `seed_everything` was given.
        split_seed: seed of the choice of held-out images, at least 0.
        pin_memory: whether loaders copy batches to pinned memory.

    Raises:
        ValueError: an argument is out of range; at `setup`, for an unsuitable, damaged or incomplete archive.
        FileNotFoundError: at `setup`, if there is no such archive or folder.
        ImportError: at `prepare_data`, if pooch is needed and not installed.
        ConnectionError: at `prepare_data`, if the archive cannot be downloaded.

    Example:
        >>> CIFARDataModule("cifar-10-python.tar.gz", classes=10).num_classes
        10

    Reference:
        Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
    """

    def __init__(
        self,
        path: str | Path | None = None,
        *,
        classes: Classes = 100,
        cache_dir: str | Path | None = None,
        url: str | None = None,
        checksum: bool = True,
        batch_size: int = 128,
        padding: int = 4,
        flip: bool = True,
        val_fraction: float = 0.0,
        seed: int | None = None,
        split_seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if classes not in SOURCES:
            raise ValueError(f"Expected argument `classes` to be one of {sorted(SOURCES)}, but got {classes!r}.")
        super().__init__(
            classes,
            batch_size=batch_size,
            augmentation=Augmentation(padding, flip),
            val_fraction=val_fraction,
            seed=seed,
            split_seed=split_seed,
            pin_memory=pin_memory,
        )
        self.path = None if path is None else Path(path)
        self.cache_dir = user_cache() if cache_dir is None else Path(cache_dir)
        self.classes: Classes = classes
        self.url, self.checksum = url, checksum

    def prepare_data(self) -> None:
        """Download the archive if no path was given and the cache does not have it."""
        if self.path is None:
            download_cifar(self.cache_dir, self.classes, url=self.url)

    def read(self) -> TrainAndTest:
        """See :func:`lightning_farms.data.read_cifar`."""
        if self.path is not None:
            return read_cifar(self.path, self.classes, checksum=self.checksum)
        archive = self.cache_dir / SOURCES[self.classes].archive
        if not archive.is_file():
            raise FileNotFoundError(f"Expected {archive} to exist, but it does not: call `prepare_data()`.")
        return read_cifar(archive, self.classes)
