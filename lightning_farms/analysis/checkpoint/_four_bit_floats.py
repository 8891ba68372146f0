"""Unpacks weights of 4-bit floating point numbers (E2M1: a sign, two bits of exponent, one of mantissa).

Two numbers lie in a byte, the first one in its low bits. In MXFP4, 32 numbers share a scale that is a power of 2 (E8M0,
a byte e for 2^(e - 127)). In NVFP4, 16 numbers share a scale of 8 bits (E4M3), and all have another one in float32.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis.checkpoint._packed_numbers import parts_beside, refusal
from lightning_farms.common.texts import shape_text

_NUMBERS = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)
_WIDTHS = (0.5, 0.5, 0.5, 0.5, 0.75, 1.0, 1.5, 2.0)  # of the intervals that are rounded to these numbers
_MX, _NV = 16, 8  # bytes that share a scale
_CALLED = "4-bit floating point numbers"


class FourBitFloats(NamedTuple):
    """A weight as bytes (..., groups, bytes of a group) and the scale of each group.

    Attributes:
        octets: the bytes.
        scales: the scales (..., groups), in a type that holds the weight.
        by_columns: whether inputs come before outputs in the file.
    """

    octets: Tensor
    scales: Tensor
    by_columns: bool = False

    def read(self) -> Tensor:
        """Return the numbers times their scales: in bfloat16 if that is exact (MXFP4), or else in float32."""
        return self._looked_up((*_NUMBERS, *(-number for number in _NUMBERS)), self.scales)

    def steps(self) -> Tensor:
        """Return the width of the interval that is rounded to each number."""
        return self._looked_up(_WIDTHS * 2, self.scales.abs())

    def _looked_up(self, table: tuple[float, ...], scales: Tensor) -> Tensor:
        pairs = torch.tensor(
            [[table[octet & 15], table[octet >> 4]] for octet in range(256)], dtype=scales.dtype, device=scales.device
        )
        found = pairs.index_select(0, self.octets.flatten().to(torch.int32))
        numbers = found.reshape(*self.octets.shape[:-1], 2 * self.octets.shape[-1]).mul_(scales.unsqueeze(-1))
        weight = numbers.flatten(-2)
        return weight.mT if self.by_columns else weight


def of_blocks(name: str, tensors: Mapping[str, Tensor], _: Mapping[str, Any]) -> FourBitFloats:
    """Return a weight in the form of gpt-oss: blocks (..., outputs, groups, 16) and scales (..., outputs, groups)."""
    blocks, [scales] = tensors[name], parts_beside(tensors, [f"{name.removesuffix('blocks')}scales"], "MXFP4")
    fit = blocks.shape == (*scales.shape, _MX) and blocks.ndim > 2
    if not fit or blocks.dtype != torch.uint8 or not is_e8m0(scales):
        raise refusal("MXFP4", f"blocks {shape_text(blocks.shape)} and scales {shape_text(scales.shape)} do not fit")
    return FourBitFloats(blocks, powers_of_2(scales))


def of_octets(
    weight: Tensor, scales: Tensor, second: Tensor | None = None, packed: str = _CALLED, *, divides: bool = False
) -> FourBitFloats:
    """Return a weight (..., outputs, bytes) with scales (..., outputs, groups), or both with inputs before outputs.

    Args:
        weight: integers of any size that hold the bytes.
        scales: in E8M0 (MXFP4) or E4M3 (NVFP4).
        second: the factor of all scales, or one for each expert, in NVFP4.
        packed: the format's name in reasons.
        divides: whether ``second`` divides the scales instead.
    """
    octets = weight.contiguous().view(torch.uint8) if weight.ndim else weight
    same = [own == other for own, other in zip(octets.shape, scales.shape, strict=False)]
    by_columns = octets.ndim == scales.ndim == 3 and same == [True, False, True]
    if by_columns:
        octets, scales = octets.mT, scales.mT
    groups = scales.shape[-1] if scales.ndim else 0
    size = octets.shape[-1] // groups if groups and octets.ndim > 1 else 0
    if scales.shape != (*octets.shape[:-1], groups) or size * groups != octets.shape[-1] or not _known(size, scales):
        raise refusal(
            packed, f"scales {shape_text(scales.shape)} do not fit {shape_text(octets.shape)} bytes of two numbers"
        )
    if size == _MX:
        factors = powers_of_2(scales)
    else:
        factors = (scales.view(torch.float8_e4m3fn) if scales.dtype == torch.uint8 else scales).to(torch.float32)
    if second is not None:
        factor = _one_or_of_experts(second, octets, packed)
        factors = factors / factor if divides else factors * factor
    return FourBitFloats(octets.unflatten(-1, (groups, size)), factors, by_columns)


def is_e8m0(scales: Tensor) -> bool:
    """Whether scales can be powers of 2 as bytes."""
    return scales.dtype == torch.uint8 or scales.dtype == getattr(torch, "float8_e8m0fnu", None)


def _known(size: int, scales: Tensor) -> bool:
    """Whether scales are of the type that a group of so many bytes has in one of the formats."""
    return size == (_MX if is_e8m0(scales) else _NV) or (size == _NV and scales.dtype == torch.uint8)


def powers_of_2(scales: Tensor) -> Tensor:
    """Return 2^(e - 127), which bfloat16 holds, also times a 4-bit number; the largest e means NaN."""
    powers = torch.tensor([*(2.0 ** (e - 127) for e in range(255)), math.nan], dtype=torch.bfloat16)
    exponents = scales.contiguous().view(torch.uint8)
    return powers.to(scales.device).index_select(0, exponents.flatten().to(torch.int32)).reshape(scales.shape)


def _one_or_of_experts(second: Tensor, octets: Tensor, packed: str) -> Tensor:
    second = second.to(torch.float32)
    if second.numel() == 1:
        return second.reshape(())
    if octets.ndim == 3 and second.numel() == len(octets):
        return second.reshape(-1, 1, 1)
    raise refusal(packed, f"nothing tells what each of {second.numel()} scales of the scales is for")
