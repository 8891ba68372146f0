"""The output layers of DPOT: feature vectors of patches back to pixels."""

from __future__ import annotations

from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

from lightning_farms.models.dpot._channels_last import is_patchwise, is_pointwise, is_untouched, pointwise


def paint(features: Tensor, layers: nn.Sequential) -> Tensor:
    """Apply a transposed convolution, which turns patches into pixels, then 1x1 convolutions and activations.

    The pixels stay grouped by patch, with channels last, until only the output's few channels have to be moved. If
    something is attached to one of the modules (see `is_untouched`), they are called as usual.
    Maps (batch, rows, columns, features) to (batch, x, y, channels).
    """
    if not _tiles(layers):
        return cast(Tensor, layers(features.movedim(-1, 1))).movedim(1, -1)
    first, *others = layers
    pixels = pointwise(others, _spread(features, cast(nn.ConvTranspose2d, first)))
    return pixels.permute(0, 1, 3, 2, 4, 5).flatten(3, 4).flatten(1, 2)


def _tiles(layers: nn.Sequential) -> bool:
    if not (is_untouched(layers, nn.Sequential) and len(layers) > 0):
        return False
    return is_patchwise(layers[0], nn.ConvTranspose2d) and all(is_pointwise(layer) for layer in list(layers)[1:])


def _spread(features: Tensor, convolution: nn.ConvTranspose2d) -> Tensor:
    """Return the patches' pixels, shape (batch, rows, columns, patch rows, patch columns, channels)."""
    weight = convolution.weight.permute(0, 2, 3, 1)
    pixels_in_patch = weight.shape[1:3].numel()
    bias = None if convolution.bias is None else convolution.bias.repeat(pixels_in_patch)
    pixels: Tensor = F.linear(features, weight.flatten(1).t(), bias).unflatten(-1, weight.shape[1:])
    return pixels
