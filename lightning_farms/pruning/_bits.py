"""Masks packed as bits, with the first entry in the highest bit of the first byte, as in numpy.packbits."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


def packed(mask: Tensor) -> Tensor:
    """Pack a mask of N entries into (ceil(N / 8),) uint8 on the CPU; the rest of the last byte is 0."""
    flat = mask.flatten().to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8))
    shifted: Tensor = flat.unflatten(0, (-1, 8)) << _shifts(mask.device)
    return shifted.sum(1, dtype=torch.uint8).cpu()


def unpacked(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack bits to a mask of the given shape, on the bits' device."""
    flat = (bits.unsqueeze(1) >> _shifts(bits.device)).bitwise_and_(1).to(torch.bool).flatten()
    return flat[: math.prod(shape)].reshape(tuple(shape))


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
