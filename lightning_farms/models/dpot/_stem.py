"""The stem of DPOT: frames to one feature vector per patch, with its linear maps multiplied together first."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lightning_farms.models.dpot._afno import autocast_off
from lightning_farms.models.dpot._channels_last import is_patchwise, is_pointwise, is_untouched
from lightning_farms.models.dpot._layers import PatchEmbedding, TimeAggregation

COORDINATES = 3


def embed(x: Tensor, embedding: PatchEmbedding, positions: Tensor, aggregation: TimeAggregation) -> Tensor:
    r"""Append x, y, t in [0, 1] to every frame, embed its patches, add the position embedding, sum over time.

    With :math:`h_t` the activated hidden features of frame t, this is

    .. math:: \sum_t K_t^T (W h_t + b + p) = \sum_t (W^T K_t)^T h_t + \Big(\sum_t K_t\Big)^T (b + p),

    computed as on the right, so that the full width is reached once instead of once for each frame. The coordinates
    are the same for all samples, so their contribution to the hidden features is computed once and broadcast. If
    something is attached to one of the modules (see `is_untouched`), they are called one by one, as on the left.
    Maps (batch, x, y, time, channels) to (batch, rows, columns, features); `positions` are p, `aggregation` has the K.
    """
    if _is_foldable(embedding, aggregation, x.shape[-1]):
        return _embed_folded(x, embedding, positions, aggregation)
    frames = _append_coordinates(x)
    embedded = embedding(frames.flatten(0, 1)) + positions
    return cast(Tensor, aggregation(embedded.unflatten(0, frames.shape[:2]))).movedim(1, -1)


def _is_foldable(embedding: PatchEmbedding, aggregation: TimeAggregation, channels: int) -> bool:
    if not (is_untouched(embedding, PatchEmbedding) and is_untouched(aggregation, TimeAggregation)):
        return False
    layers = embedding.proj
    if not is_untouched(layers, nn.Sequential):
        return False
    if [isinstance(layer, nn.Conv2d) for layer in layers] != [True, False, True]:
        return False
    strided, activation, widening = layers
    if not (is_patchwise(strided, nn.Conv2d) and is_pointwise(activation) and is_pointwise(widening)):
        return False
    return cast(nn.Conv2d, strided).in_channels == channels + COORDINATES


def _embed_folded(x: Tensor, embedding: PatchEmbedding, positions: Tensor, aggregation: TimeAggregation) -> Tensor:
    strided, activation, widening = cast(tuple[nn.Conv2d, nn.Module, nn.Conv2d], tuple(embedding.proj))
    with autocast_off(x.device.type):
        from_coordinates = _coordinate_field(strided, x)
        product, offset = _fold(widening, positions, aggregation)
    channels = x.shape[-1]
    height, width = strided.kernel_size
    # (batch, rows, columns, time, channels, patch rows, patch columns)
    patches = x.unflatten(2, (-1, width)).unflatten(1, (-1, height)).permute(0, 1, 3, 5, 6, 2, 4).flatten(4)
    hidden = F.linear(patches, strided.weight[:, :channels].flatten(1))
    hidden = activation(hidden + from_coordinates.to(hidden.dtype)).flatten(3)
    features = torch.matmul(hidden, product.to(hidden.dtype))
    return features + offset.to(features.dtype)


def _coordinate_field(convolution: nn.Conv2d, x: Tensor) -> Tensor:
    """Return the convolution's bias plus the coordinates' contribution, shape (rows, columns, time, hidden)."""
    weight, bias = _at_least_float32(convolution.weight[:, -COORDINATES:]), convolution.bias
    height, width = convolution.kernel_size
    along_x, along_y, along_t = _axes(x, weight.dtype)
    of_rows = along_x.view(-1, height) @ weight[:, 0].sum(dim=2).t()
    of_columns = along_y.view(-1, width) @ weight[:, 1].sum(dim=1).t()
    of_frames = along_t[:, None] * weight[:, 2].sum(dim=(1, 2))
    if bias is not None:
        of_frames = of_frames + bias
    return of_rows[:, None, None] + of_columns[:, None] + of_frames


def _fold(widening: nn.Conv2d, positions: Tensor, aggregation: TimeAggregation) -> tuple[Tensor, Tensor]:
    """Return what follows the activation: a matrix (time * hidden, features), a summand (rows, columns, features)."""
    matrices, waves = _at_least_float32(aggregation.w), _at_least_float32(aggregation.waves())
    weight = _at_least_float32(widening.weight).flatten(1).t()
    offset = _at_least_float32(positions)[0].movedim(0, -1)
    if widening.bias is not None:
        offset = offset + widening.bias
    # the waves multiply the smaller factor if they can, as the matrices are the largest tensor of the network
    product = torch.matmul(weight * waves[:, None], matrices).flatten(0, 1)
    return product, offset @ torch.einsum("tij,ti->ij", matrices, waves)


def _append_coordinates(x: Tensor) -> Tensor:
    """Move channels forward and append x, y, t: (batch, x, y, t, c) becomes (batch, t, c + 3, x, y)."""
    batch, rows, columns, frames, _ = x.shape
    along_x, along_y, along_t = _axes(x, x.dtype)
    coordinates = (along_x.view(1, 1, 1, -1, 1), along_y.view(1, 1, 1, 1, -1), along_t.view(1, -1, 1, 1, 1))
    shape = (batch, frames, 1, rows, columns)
    return torch.cat((x.permute(0, 3, 4, 1, 2), *(axis.expand(shape) for axis in coordinates)), dim=2)


def _axes(x: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """Return coordinates from 0 to 1 along x, y and time of frames (batch, x, y, time, channels)."""
    return [torch.linspace(0, 1, size, dtype=dtype, device=x.device) for size in x.shape[1:4]]


def _at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
