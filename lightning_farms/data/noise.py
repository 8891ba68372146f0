"""Gaussian noise that depends on its seed alone."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def add_noise(fields: Tensor, amplitude: float, *, seed: Sequence[int]) -> Tensor:
    """Add Gaussian noise in units of each channel's root mean square.

    x + amplitude * sqrt(mean of x^2 over cells and frames) * e, with e of the standard normal distribution.

    Args:
        fields: one item, (X, Y, T, C).
        amplitude: at least 0; 0 adds none.
        seed: numbers of at least 0 that fix e, on any machine and in any process.

    Returns:
        The same shape and type.

    Example:
        >>> noisy = add_noise(torch.full((64, 64, 10, 1), 2.0), 0.1, seed=(0, 1))
        >>> round(float(noisy.std()), 1)
        0.2
    """
    if amplitude == 0:
        return fields
    generator = np.random.Generator(np.random.PCG64(np.random.SeedSequence((len(seed), *seed))))
    noise = torch.from_numpy(generator.standard_normal(tuple(fields.shape), dtype=np.float32)).to(fields)
    root_mean_square = fields.square().mean(dim=(0, 1, 2)).sqrt()
    return fields + amplitude * root_mean_square * noise
