"""Noise on the training input that depends on nothing but its place in the training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor


def noise_generator(seed: int, epoch: int, batch_idx: int, rank: int, device: torch.device) -> torch.Generator:
    """A generator of its own for every training batch, so that a resumed run draws what an uninterrupted one draws.

    Args:
        seed: Of the training, at least 0.
        epoch: Number of the epoch.
        batch_idx: Number of the batch in the epoch.
        rank: Number of the process.
        device: Where the noise is drawn; devices of different kinds draw different numbers.

    Returns:
        The generator.

    Example:
        >>> place = (0, 3, 7, 0, torch.device("cpu"))
        >>> torch.equal(*(torch.randn(2, generator=noise_generator(*place)) for _ in range(2)))
        True
    """
    entropy = int(np.random.SeedSequence((seed, epoch, batch_idx, rank)).generate_state(1, np.uint64)[0] >> 1)
    return torch.Generator(device).manual_seed(entropy)


def with_noise(x: Tensor, scale: float, generator: torch.Generator) -> Tensor:
    r"""Add Gaussian noise in units of each sample's and channel's root mean square.

    .. math::
        x_{b, \cdot, \cdot, \cdot, c} + s \sqrt{\langle x_{b, \cdot, \cdot, \cdot, c}^2 \rangle}\, \varepsilon,
        \qquad \varepsilon \sim N(0, 1)

    Args:
        x: Fields, (batch, X, Y, frames, channels).
        scale: :math:`s`, at least 0.
        generator: Source of the noise, on the device of ``x``; not touched where ``scale`` is 0.

    Returns:
        The noisy fields; ``x`` itself where ``scale`` is 0.
    """
    if scale == 0:
        return x
    root_mean_square = x.square().mean(dim=(1, 2, 3), keepdim=True).sqrt()
    noise = torch.randn(x.shape, generator=generator, dtype=x.dtype, device=x.device)
    return x + scale * root_mean_square * noise
