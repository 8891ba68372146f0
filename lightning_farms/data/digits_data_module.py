"""Data module for scikit-learn's handwritten digits, which need no download."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from lightning_farms.common.arguments import check_share
from lightning_farms.data.image_data_module import ImageDataModule
from lightning_farms.data.images._batches import Augmentation
from lightning_farms.data.images._labelled_images import LabelledImages, TrainAndTest, stratified_split

_SIDE, _WHITE, _CLASSES = 8, 16, 10


class DigitsDataModule(ImageDataModule):
    """1,797 handwritten digits of 8 x 8 pixels that come with scikit-learn: for examples and tests that run anywhere.

    The images are enlarged (each pixel a square of pixels) and grey in three channels, so that networks for CIFAR take
    them; training images are shifted within a black border, never mirrored. A batch is a pair (images, labels):
    float32 (batch, 3, size, size) and int64 (batch,). Order and crops of an epoch depend on (seed, epoch) alone, as in
    :class:`CIFARDataModule`.

    Args:
        size: height and width of the enlarged images, a multiple of 8; VGG networks need 32.
        test_fraction: share of each digit's images that is used for testing, in (0, 1).
        batch_size: images in a batch (of one process), at least 1.
        padding: black border within which training images are shifted, in pixels; an eighth of the size when left out.
        val_fraction: 0: validate on the test images. Above 0 and below 1: hold out that share of each class of the
            training images instead.
        seed: seed of order and crops, at least 0; when left out, `torch.initial_seed()` at the start of the training,
            which is the seed that `seed_everything` was given.
        split_seed: seed of the choice of test and held-out images, at least 0.
        pin_memory: whether loaders copy batches to pinned memory.

    Raises:
        ValueError: an argument is out of range.
        ImportError: at `setup`, if scikit-learn is not installed.

    Example:
        >>> data = DigitsDataModule(size=16, test_fraction=0.5, batch_size=64, seed=0)
        >>> data.setup("fit")
        >>> images, labels = next(iter(data.train_dataloader()))
        >>> images.shape, len(data.train_dataloader())
        (torch.Size([64, 3, 16, 16]), 15)

    Reference:
        The test part of Alpaydin and Kaynak, Optical Recognition of Handwritten Digits, UCI, 1998.
    """

    def __init__(
        self,
        *,
        size: int = 16,
        test_fraction: float = 0.25,
        batch_size: int = 128,
        padding: int | None = None,
        val_fraction: float = 0.0,
        seed: int | None = None,
        split_seed: int = 0,
        pin_memory: bool = False,
    ) -> None:
        if size < _SIDE or size % _SIDE:
            raise ValueError(f"Expected argument `size` to be a multiple of {_SIDE}, but got {size}.")
        check_share(test_fraction=test_fraction)
        if test_fraction == 0:
            raise ValueError("Expected argument `test_fraction` to be in (0, 1), but got 0.")
        super().__init__(
            _CLASSES,
            batch_size=batch_size,
            augmentation=Augmentation(size // _SIDE if padding is None else padding),
            val_fraction=val_fraction,
            seed=seed,
            split_seed=split_seed,
            pin_memory=pin_memory,
        )
        self.size, self.test_fraction = size, test_fraction

    def read(self) -> TrainAndTest:
        """Split and enlarge scikit-learn's images.

        Returns:
            Training and test images with 3 equal channels.

        Raises:
            ImportError: scikit-learn is not installed.
        """
        try:
            from sklearn.datasets import load_digits
        except ImportError as error:
            raise ImportError('DigitsDataModule needs scikit-learn: pip install "lightning-farms[images]"') from error
        digits = load_digits()
        grey = torch.from_numpy(digits.images).float()[:, None] * (255 / _WHITE)
        enlarged = F.interpolate(grey.round().to(torch.uint8), size=(self.size, self.size), mode="nearest")
        images = LabelledImages(enlarged.expand(-1, 3, -1, -1).contiguous(), torch.from_numpy(digits.target).long())
        kept, held_out = stratified_split(images.labels, self.test_fraction, self.split_seed)
        return TrainAndTest(images.part(kept), images.part(held_out))
