"""Unpacks weights of a few bits in the forms of compressed-tensors, MLX and HQQ: (q - z) s + b."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lightning_farms.analysis.checkpoint._packed_numbers import (
    PackedWeight,
    even_groups,
    listed_groups,
    parts_beside,
    quantisation,
    refusal,
    small_values,
    unpacked_bits,
)
from lightning_farms.common.texts import shape_text

_OF_HQQ = {"8bit_u8": (1, 8), "4bit_u8": (2, 4), "3bit_32": (10, 3), "2bit_u8": (4, 2), "1bit_u8": (8, 1)}
"""How many numbers lie in one, and the bits of each."""


def of_compressed_tensors(name: str, tensors: Mapping[str, Tensor], _: Mapping[str, Any]) -> PackedWeight:
    """Return ``pack-quantized`` weights: offset binary numbers of 1 to 8 bits in int32, with a new one for each row.

    ``weight_shape`` tells the number of inputs, and that the number of bits; zeros are packed along the outputs.
    """
    own, known = name.removesuffix("_packed"), "compressed-tensors"
    packed = tensors[name]
    scales, _unread = parts_beside(tensors, [f"{own}_scale", f"{own}_shape"], known)
    *outer, inputs = small_values(f"{own}_shape", tensors) or [0]
    words = packed.shape[-1] if packed.ndim else 0
    bits = next((bits for bits in range(1, 9) if inputs > 0 and -(-inputs * bits // 32) == words), 0)
    if packed.dtype != torch.int32 or packed.ndim < 2 or list(packed.shape[:-1]) != outer or not bits:
        raise refusal(known, f"{packed.dtype} {shape_text(packed.shape)} does not fit its shape {[*outer, inputs]}")
    if scales.numel() == 1:
        scales = scales.reshape([1] * packed.ndim)
    if scales.ndim != packed.ndim or scales.shape[-2] not in (1, packed.shape[-2]):
        raise refusal(known, f"scales {shape_text(scales.shape)} do not fit {shape_text([*outer, inputs])}")
    count = scales.shape[-1]
    listed = tensors.get(f"{own}_g_idx")
    none_listed = listed is None or (not listed.is_meta and bool((listed < 0).all()))
    if none_listed or listed is None:
        groups = even_groups(inputs, count, known, packed.device)
    else:
        groups = listed_groups(listed, inputs, count, known)
    numbers = unpacked_bits(packed, bits)[..., :inputs]
    return PackedWeight(numbers, scales, groups, _zeros_of_compressed_tensors(own, tensors, scales, bits))


def _zeros_of_compressed_tensors(own: str, tensors: Mapping[str, Tensor], scales: Tensor, bits: int) -> Tensor:
    """Return zeros as offset binary numbers: packed along the outputs if they are of int32, or one for each scale."""
    offset = 2 ** (bits - 1)
    if f"{own}_zero_point" not in tensors:
        return torch.full_like(scales, offset, dtype=torch.float32)
    zeros = tensors[f"{own}_zero_point"]
    outputs = scales.shape[-2]
    if zeros.shape == scales.shape:
        return torch.add(zeros.to(torch.float32), offset)
    if zeros.dtype == torch.int32 and zeros.shape == (*scales.shape[:-2], -(-outputs * bits // 32), scales.shape[-1]):
        numbers: Tensor = unpacked_bits(zeros.mT, bits).narrow(-1, 0, outputs)
        return numbers.transpose(-1, -2)
    raise refusal("compressed-tensors", f"zeros {shape_text(zeros.shape)} do not fit scales {shape_text(scales.shape)}")


def of_mlx(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> PackedWeight:
    """Return MLX's affine weights: numbers in uint32, q s + b; the configuration tells the size of the groups."""
    module = name.removesuffix("weight")
    packed = tensors[name]
    scales, biases = parts_beside(tensors, [f"{module}scales", f"{module}biases"], "MLX")
    if packed.ndim < 2 or scales.shape != biases.shape or scales.shape[:-1] != packed.shape[:-1]:
        raise refusal("MLX", f"scales {shape_text(scales.shape)} do not fit {shape_text(packed.shape)}")
    of_all = quantisation(config)
    own = of_all.get(module.removesuffix("."))
    size = (own if isinstance(own, Mapping) else of_all).get("group_size")
    count = scales.shape[-1]
    if not isinstance(size, int) or size < 1 or not count:
        raise refusal("MLX", "no config.json beside the file tells the `group_size` of its `quantization`")
    bits, rest = divmod(32 * packed.shape[-1], size * count)
    if rest or not 1 <= bits <= 8:
        raise refusal("MLX", f"{count} groups of {size} inputs do not fit {shape_text(packed.shape)}")
    groups = even_groups(size * count, count, "MLX", packed.device)
    return PackedWeight(unpacked_bits(packed, bits), scales, groups, offsets=biases)


def of_hqq(name: str, tensors: Mapping[str, Tensor], _: Mapping[str, Any]) -> PackedWeight:
    """Return HQQ's weights: a matrix, whose rows or columns are groups, in parts that lie in each number's bits.

    The first part lies in the highest bits. The matrix has the weight's numbers in their order.
    """
    module, packed = name.removesuffix("W_q"), tensors[name]
    needed = [f"{module}{part}" for part in ("scale", "zero", "shape", "packing")]
    scales, zeros, *_unread = parts_beside(tensors, needed, "HQQ")
    shape, form = small_values(needed[2], tensors), "".join(map(chr, small_values(needed[3], tensors)))
    if form not in _OF_HQQ or packed.ndim != 2 or packed.dtype.is_floating_point:
        raise refusal("HQQ", f"nothing is known of its packing {form!r} in {packed.dtype}")
    parts, bits = _OF_HQQ[form]
    numbers = torch.cat([(packed >> bits * place) & (2**bits - 1) for place in reversed(range(parts))])
    rows, rest = divmod(math.prod(shape), max(packed.shape[1], 1))
    padded = len(numbers) - rows
    fits = len(shape) == 2 and rows > 0 and not rest and (padded == 0 or (bits == 3 and 0 < padded < parts))
    if not fits or any(each.ndim != 2 or not _spans(each, (rows, packed.shape[1])) for each in (scales, zeros)):
        raise refusal("HQQ", f"{shape_text(packed.shape)} with its scales does not fit its shape {shape_text(shape)}")

    def of_all(factors: Tensor) -> Tensor:
        return factors.expand(rows, packed.shape[1]).reshape(shape)

    groups = torch.arange(shape[1], device=packed.device)
    return PackedWeight(numbers[:rows].reshape(shape), of_all(scales), groups, of_all(zeros))


def _spans(factors: Tensor, shape: tuple[int, int]) -> bool:
    return all(own in (1, size) for own, size in zip(factors.shape, shape, strict=True))
