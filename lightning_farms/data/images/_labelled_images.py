"""Labelled images in memory: their statistics, stratified parts of them, and random crops and flips of a batch."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from lightning_farms.common.arguments import check_share
from lightning_farms.data._normalization import ChannelStatistics

_GREY_LEVELS = 256


class LabelledImages(NamedTuple):
    """Images and their classes.

    Attributes:
        images: uint8, shape (number, channels, height, width).
        labels: int64, shape (number,), from 0.
    """

    images: Tensor
    labels: Tensor

    def part(self, indices: Tensor) -> LabelledImages:
        """Return the images with these indices, in that order."""
        return LabelledImages(self.images[indices], self.labels[indices])


class TrainAndTest(NamedTuple):
    """Training and test images of a set."""

    train: LabelledImages
    test: LabelledImages


def image_statistics(images: Tensor) -> ChannelStatistics:
    """Compute the mean and standard deviation of each channel over all pixels of all images.

    Example:
        >>> image_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
        ChannelStatistics(mean=tensor([0.5000]), std=tensor([0.5000]))
    """
    values = torch.arange(_GREY_LEVELS, dtype=torch.float64) / (_GREY_LEVELS - 1)
    counts = torch.stack(  # from the histogram: exact, without a floating-point copy of all images
        [torch.bincount(images[:, channel].flatten(), minlength=_GREY_LEVELS) for channel in range(images.shape[1])]
    ).double()
    shares = counts / counts.sum(1, keepdim=True)
    mean = shares @ values
    std = (shares * (values - mean[:, None]) ** 2).sum(1).sqrt()
    if not (std > 0).all():
        raise ValueError("Expected argument `images` to vary in every channel, but one has the same value everywhere.")
    return ChannelStatistics(mean.float(), std.float())


def stratified_split(labels: Tensor, fraction: float, seed: int) -> tuple[Tensor, Tensor]:
    """Hold out the same share of every class, at random.

    Example:
        >>> kept, held_out = stratified_split(torch.tensor([0, 0, 0, 0, 1, 1]), 0.5, seed=0)
        >>> len(kept), len(held_out), torch.tensor([0, 0, 0, 0, 1, 1])[held_out].tolist()
        (3, 3, [0, 0, 1])
    """
    check_share(fraction=fraction)
    generator = torch.Generator().manual_seed(seed)
    held_out = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        members = (labels == label).nonzero().flatten()
        number = round(fraction * len(members))
        if fraction > 0 and not 0 < number < len(members):
            raise ValueError(
                f"Expected argument `fraction` to hold out some of the {len(members)} images of class {label} and to "
                f"leave some, but {fraction:g} holds out {number}. Choose it between {0.5 / len(members):.2g} and "
                f"{1 - 0.5 / len(members):.2g}."
            )
        held_out[members[torch.randperm(len(members), generator=generator)[:number]]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def crop_and_flip(images: Tensor, shifts: Tensor, flips: Tensor, padding: int) -> Tensor:
    """Shift every image within a black border and mirror some, all at once.

    Args:
        images: shape (batch, channels, height, width).
        shifts: rows and columns that are cropped at the top and left of the padded image, int64 of shape (batch, 2),
            from 0 to twice the padding; the padding itself leaves an image as it is.
        flips: which images are mirrored left to right after the crop, bool of shape (batch,).
        padding: width of the border, at least 0.

    Returns:
        The shifted and mirrored images, of the same shape and type.

    Example:
        >>> image = torch.tensor([[1, 2], [3, 4]]).reshape(1, 1, 2, 2)
        >>> crop_and_flip(image, torch.tensor([[2, 1]]), torch.tensor([False]), 1)[0, 0].tolist()
        [[3, 4], [0, 0]]
        >>> crop_and_flip(image, torch.tensor([[1, 1]]), torch.tensor([True]), 1)[0, 0].tolist()
        [[2, 1], [4, 3]]
    """
    channels, height, width = images.shape[1:]
    columns = torch.arange(width)
    columns = torch.where(flips[:, None], columns.flip(0), columns) + shifts[:, 1:]
    rows = torch.arange(height) + shifts[:, :1]
    padded = F.pad(images, (padding,) * 4)
    pixels = (rows[:, :, None] * padded.shape[3] + columns[:, None, :]).flatten(1)
    return padded.flatten(2).gather(2, pixels[:, None].expand(-1, channels, -1)).view(images.shape)


def normalise(images: Tensor, statistics: ChannelStatistics) -> Tensor:
    """Convert uint8 images to float32, with mean 0 and variance 1 in every channel of the statistics' set."""
    scale = 1 / ((_GREY_LEVELS - 1) * statistics.std)
    offset = -statistics.mean / statistics.std
    return images * scale[:, None, None] + offset[:, None, None]
