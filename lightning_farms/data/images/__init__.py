"""Labelled images: CIFAR's archives, and batches of images in memory."""

from lightning_farms.data.images.cifar import download_cifar, read_cifar

__all__ = ["download_cifar", "read_cifar"]
