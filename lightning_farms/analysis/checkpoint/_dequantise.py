"""Unpacks quantised weights to the numbers that they stand for, in formats that can be unpacked on the CPU."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis._rounding import units
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor
from lightning_farms.common.checkpoints.shapes import MetaTensors

_BLOCK = 128  # block size of DeepSeek's fp8
_QUANT_STATE = "quant_state.bitsandbytes__"


class Unpacked(NamedTuple):
    """Functions that read the numbers of a packed tensor, and how far apart packed numbers are at each entry."""

    read: Callable[[], Tensor]
    steps: Callable[[], Tensor]


def dequantised(name: str, packed: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Unpacked | None:
    """Return how to unpack a packed tensor; None for formats that are not unpacked here.

    Args:
        name: name of the tensor.
        packed: its format, as ``find_quantised`` calls it.
        tensors: tensors of the checkpoint.
        config: configuration beside the checkpoint.
    """
    if packed not in _FORMATS:
        return None
    return Unpacked(*(partial(each, name, tensors, config) for each in _FORMATS[packed]))


def _scaled(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return (W - zero) s, with one scale s for the tensor, per row, or per block."""
    weight = tensors[name].to(torch.float32)
    if f"{name}_offset" in tensors:
        raise UnreadableTensor(
            "it is quantised with offsets, which are not unpacked here; analyse the original checkpoint"
        )
    if f"{name}_zero_point" in tensors:
        weight = weight - _spread(tensors[f"{name}_zero_point"], weight, _block_size(config))
    return weight * _scales(name, tensors, config)


def _scaled_steps(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return the unit in the last place times s."""
    weight = tensors[name]
    unit = units(weight, weight.dtype) if weight.is_floating_point() else torch.ones(weight.shape)
    return unit * _scales(name, tensors, config).abs()


def _scales(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    suffix = "_scale_inv" if f"{name}_scale_inv" in tensors else "_scale"
    scales = tensors[f"{name}{suffix}"]
    if scales.dtype == torch.uint8:  # MXFP8's exponents
        scales = scales.view(torch.float8_e8m0fnu)
    if not scales.is_floating_point():
        raise UnreadableTensor(
            f"it is quantised with scales of type {scales.dtype}, which are not read; analyse the original checkpoint"
        )
    return _spread(scales, tensors[name], _block_size(config))


def _block_size(config: Mapping[str, Any]) -> tuple[int, int]:
    settings = config.get("quantization_config")
    block = settings.get("weight_block_size") if isinstance(settings, Mapping) else None
    known = isinstance(block, list) and len(block) == 2 and all(isinstance(each, int) and each > 0 for each in block)
    return (block[0], block[1]) if known and block else (_BLOCK, _BLOCK)


def _spread(factors: Tensor, weight: Tensor, block: tuple[int, int]) -> Tensor:
    """Expand factors to one for each entry of the weight's last two dimensions."""
    factors = factors.to(torch.float32)
    if factors.numel() == 1:
        return factors.reshape(())
    if factors.ndim == 1 and len(factors) != len(weight):
        raise UnreadableTensor(
            f"it is quantised, and nothing tells which of its {len(weight)} rows each of {len(factors)} scales is for"
        )
    factors = factors.reshape(*factors.shape, *[1] * (weight.ndim - factors.ndim))  # per expert, output or row
    for axis, size in ((-2, block[0]), (-1, block[1])):
        count, length = factors.shape[axis], weight.shape[axis]
        if count not in (1, length):
            if math.ceil(length / size) == count:
                repeats = size
            elif length % count == 0:
                repeats = length // count
            else:
                raise UnreadableTensor(f"damaged: {count} scales do not fit {length} rows or columns")
            factors = factors.repeat_interleave(repeats, dim=axis).narrow(axis, 0, length)
    return factors


def _by_rows(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Unpack 8 bits of bitsandbytes, where the largest entry of each row is 127."""
    return tensors[name].to(torch.float32) * _by_rows_steps(name, tensors, config)


def _by_rows_steps(name: str, tensors: Mapping[str, Tensor], _: Mapping[str, Any]) -> Tensor:
    largest = tensors[f"{name.removesuffix('weight')}SCB"].to(torch.float32)
    return (largest / 127).unsqueeze(-1).expand(tensors[name].shape)


def _four_bits(name: str, tensors: Mapping[str, Tensor], _: Mapping[str, Any], packed: Tensor | None = None) -> Tensor:
    """Unpack 4 bits of bitsandbytes (NF4, FP4) by that package."""
    stored = tensors.stored if isinstance(tensors, MetaTensors) else tensors
    parts = {other.removeprefix(f"{name}."): other for other in stored if other.startswith(f"{name}.")}
    described = next((other for other in parts if other.startswith(_QUANT_STATE)), None)
    if described is None:
        raise UnreadableTensor("it is quantised by bitsandbytes, and its quant_state is missing")
    if isinstance(tensors, MetaTensors):
        state = json.loads(bytes(stored[parts[described]].tolist()))
        return torch.empty([int(size) for size in state["shape"]], device="meta")
    try:
        from bitsandbytes.functional import QuantState, dequantize_4bit
    except ImportError as error:
        raise UnreadableTensor(
            'it needs the package bitsandbytes to be unpacked: pip install "lightning-farms[formats]"'
        ) from error
    state = QuantState.from_dict({part: stored[other] for part, other in parts.items()}, device=torch.device("cpu"))
    unpacked: Tensor = dequantize_4bit(stored[name] if packed is None else packed, state)
    return unpacked


def _four_bits_steps(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return the width of the interval that is rounded to each entry's number, out of the 16 that a block can hold."""
    table = tensors[f"{name}.quant_map"].to(torch.float32)
    code = int(table.argmax())
    largest = _four_bits(name, tensors, config, torch.full_like(tensors[name], code << 4 | code)).to(torch.float32)
    table = table.sort().values
    middles = (table[1:] + table[:-1]) / 2
    widths = torch.cat((2 * (middles[:1] - table[:1]), middles.diff(), 2 * (table[-1:] - middles[-1:])))
    unit = largest / table[-1]
    relative = _four_bits(name, tensors, config).to(torch.float32) / unit
    return widths[torch.bucketize(relative.nan_to_num(), middles)] * unit


_Function = Callable[[str, Mapping[str, Tensor], Mapping[str, Any]], Tensor]
_FORMATS: dict[str, tuple[_Function, _Function]] = {
    "fp8 with scales": (_scaled, _scaled_steps),
    "integers or fp8 with scales": (_scaled, _scaled_steps),
    "bitsandbytes, 8 bits": (_by_rows, _by_rows_steps),
    "bitsandbytes, 4 bits": (_four_bits, _four_bits_steps),
}
