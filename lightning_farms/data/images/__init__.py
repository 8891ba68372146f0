"""Labelled images: CIFAR's archives, and batches of images in memory."""
