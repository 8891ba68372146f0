"""Noise on the input fields of a network in training."""

from __future__ import annotations

import torch
from torch import Tensor


def add_noise(fields: Tensor, amplitude: float, generator: torch.Generator) -> Tensor:
    r"""Add Gaussian noise in units of each sample's and channel's root mean square.

    .. math::
        x_{b, \cdot, \cdot, \cdot, c} + a \sqrt{\langle x_{b, \cdot, \cdot, \cdot, c}^2 \rangle}\, \varepsilon,
        \qquad \varepsilon \sim N(0, 1)

    Args:
        fields: (..., X, Y, frames, channels), one sample or several.
        amplitude: :math:`a`, at least 0.
        generator: source of the noise, on the device of ``fields``; not used if ``amplitude`` is 0.

    Returns:
        The noisy fields, of the same shape and type; ``fields`` itself if ``amplitude`` is 0.

    Example:
        >>> noisy = add_noise(torch.full((64, 64, 10, 1), 2.0), 0.1, torch.Generator().manual_seed(0))
        >>> round(float(noisy.std()), 1)
        0.2
    """
    if amplitude == 0:
        return fields
    wide = fields.to(torch.promote_types(fields.dtype, torch.float32))  # float16 squares overflow from 256 on
    root_mean_square = wide.square().mean(dim=(-4, -3, -2), keepdim=True).sqrt().to(fields.dtype)
    noise = torch.randn(fields.shape, generator=generator, dtype=fields.dtype, device=fields.device)
    return fields + amplitude * root_mean_square * noise
