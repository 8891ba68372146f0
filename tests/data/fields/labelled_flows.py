"""A small file whose values say which trajectory and frame they belong to."""

import h5py
import numpy as np

from lightning_farms.data import CFDDataModule

TRAJECTORIES, FRAMES = 12, 8


def label(trajectory, frame):
    return 100 * trajectory + frame


def write_labelled(path, trajectories=TRAJECTORIES, frames=FRAMES, size=(8, 8), offset=0):
    """Each value of the density says which trajectory and frame it belongs to."""
    labels = np.add.outer(100 * np.arange(trajectories), np.arange(frames)).astype(np.float32)
    labels[0, 0] = 1e-30  # a density is positive; nothing that is added to it changes by that
    labels += offset
    with h5py.File(path, "w") as file:
        for channel, name in enumerate(("density", "Vx", "Vy", "pressure")):
            file[name] = np.broadcast_to((labels + 0.1 * channel)[:, :, None, None], (*labels.shape, *size))
    return path


def module(path, **options):
    return CFDDataModule(path, **({"in_timesteps": 3, "out_timesteps": 2, "batch_size": 4} | options))


def labels(batch):
    """Density of the first input frame and of the first target frame, one pair for each item."""
    x, y = batch
    return [(int(a), int(b)) for a, b in zip(x[:, 0, 0, 0, 2], y[:, 0, 0, 0, 2], strict=True)]
