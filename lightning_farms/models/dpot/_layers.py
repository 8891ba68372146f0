"""The layers of DPOT: patch embedding, time aggregation, and the block with its Fourier filter and MLP."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_farms.models.dpot._afno import AFNO2d, build_activation
from lightning_farms.models.dpot._channels_last import is_pointwise, is_untouched, pointwise
from lightning_farms.models.dpot.config import NORM_GROUPS, Activation, TimeAggregationKind


class PatchEmbedding(nn.Module):
    """Turn every frame into one feature vector per patch: strided convolution, activation, 1x1 convolution."""

    def __init__(
        self, in_channels: int, *, hidden_channels: int, embed_dim: int, patch_size: int, act: Activation
    ) -> None:
        super().__init__()
        self.proj = nn.Sequential(
            nn.Conv2d(in_channels, hidden_channels, kernel_size=patch_size, stride=patch_size),
            build_activation(act),
            nn.Conv2d(hidden_channels, embed_dim, kernel_size=1),
        )

    def forward(self, frames: Tensor) -> Tensor:
        """Map (frames, in_channels, x, y) to (frames, embed_dim, x / patch_size, y / patch_size)."""
        return cast(Tensor, self.proj(frames))


class TimeAggregation(nn.Module):
    r"""Sum the frames' features into one, with a matrix for each frame.

    .. math:: y_j = \sum_t \sum_i w_{tij} \cos(\tau_t \gamma_i)\, x_{ti}, \qquad \tau_t = t / (T - 1)

    for kind "exp_mlp"; without the cosine for "mlp".

    Reference:
        Hao et al., DPOT, ICML 2024, section 3.2 (temporal aggregation layer).
    """

    def __init__(self, timesteps: int, embed_dim: int, *, kind: TimeAggregationKind = "exp_mlp") -> None:
        super().__init__()
        self.w = nn.Parameter(torch.empty(timesteps, embed_dim, embed_dim))
        self.gamma = nn.Parameter(torch.empty(1, embed_dim)) if kind == "exp_mlp" else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Draw w from N(0, 1) / (T sqrt(embed_dim)); set gamma to powers of two from 2^-10 to 2^10."""
        timesteps, embed_dim, _ = self.w.shape
        nn.init.normal_(self.w, std=1.0 / (timesteps * math.sqrt(embed_dim)))
        if self.gamma is not None:
            with torch.no_grad():
                self.gamma.copy_(2.0 ** torch.linspace(-10, 10, embed_dim, device=self.gamma.device))

    def spectral_weights(self) -> Iterator[tuple[str, Tensor, tuple[Tensor, ...]]]:
        """Yield the matrices (timesteps, in, out), one for each frame, with their parameters (w, and gamma if any)."""
        yield "w", self.w, tuple(self.parameters(recurse=False))

    def waves(self) -> Tensor:
        """Return the cosines, shape (T, embed_dim in); for kind "mlp" they are ones.

        They are computed in float32 at least: gamma reaches 1024, at which a phase in bfloat16 is meaningless.
        """
        if self.gamma is None:
            return self.w.new_ones(self.w.shape[:2])
        gamma = self.gamma.to(torch.promote_types(self.gamma.dtype, torch.float32))
        times = torch.linspace(0, 1, self.w.shape[0], dtype=gamma.dtype, device=gamma.device)
        return torch.cos(times[:, None] * gamma)

    def kernel(self) -> Tensor:
        """Return the matrices with the cosines multiplied in, shape (T, embed_dim in, embed_dim out)."""
        return self.w * self.waves().to(self.w.dtype).unsqueeze(-1)

    def forward(self, features: Tensor) -> Tensor:
        """Map (batch, T, embed_dim, height, width) to (batch, embed_dim, height, width)."""
        weight = self.kernel().flatten(0, 1).t()[..., None, None]
        return F.conv2d(features.flatten(1, 2), weight)


class DPOTBlock(nn.Module):
    """One block: x + MLP(norm(AFNO(norm(x)))), with group normalisation of 8 groups and 1x1 convolutions."""

    def __init__(self, embed_dim: int, *, n_blocks: int, modes: int, hidden_dim: int, act: Activation) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(NORM_GROUPS, embed_dim)
        self.filter = AFNO2d(embed_dim, n_blocks=n_blocks, modes=modes, act=act)
        self.norm2 = nn.GroupNorm(NORM_GROUPS, embed_dim)
        self.mlp = nn.Sequential(
            nn.Conv2d(embed_dim, hidden_dim, kernel_size=1),
            build_activation(act),
            nn.Conv2d(hidden_dim, embed_dim, kernel_size=1),
        )

    def forward(self, x: Tensor) -> Tensor:
        """Apply the block to features of shape (batch, embed_dim, height, width), best with channels last in memory."""
        hidden = self.norm2(self.filter(self.norm1(x)))
        if is_untouched(self.mlp, nn.Sequential) and all(is_pointwise(layer) for layer in self.mlp):
            return x + pointwise(self.mlp, hidden.movedim(1, -1)).movedim(-1, 1)
        return x + cast(Tensor, self.mlp(hidden))
