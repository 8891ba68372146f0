"""Unpacks quantised weights to the numbers that they stand for, in formats that can be unpacked on the CPU."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis._rounding import units
from lightning_farms.analysis.checkpoint._four_bit_floats import (
    FourBitFloats,
    is_e8m0,
    of_blocks,
    of_octets,
    powers_of_2,
)
from lightning_farms.analysis.checkpoint._gptq_awq import of_gptq_or_awq
from lightning_farms.analysis.checkpoint._packed_integers import of_compressed_tensors, of_hqq, of_mlx
from lightning_farms.analysis.checkpoint._packed_numbers import PackedWeight, parts_beside, refusal
from lightning_farms.analysis.checkpoint._quantised import FORMAT_NAMES
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
    form = partial(_FORMATS[packed], name, tensors, config)
    return Unpacked(lambda: form().read(), lambda: form().steps())


def weight_name(name: str) -> str:
    """Return the name of the weight that a packed tensor stands for: ``up.weight`` for ``up.qweight``."""
    module, _, leaf = name.rpartition(".")
    if leaf in ("blocks", "_data"):
        return module
    match = re.fullmatch(r"_?(.+?)(_blocks|_packed|_qdata|:__qdata)", leaf)
    own = match[1] if match else "weight" if leaf in ("qweight", "W_q") else leaf
    return ".".join(part for part in (module, own) if part)


def _scaled(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return (W - zero) s, with one scale s for the tensor, per row, or per block."""
    weight = tensors[name].to(torch.float32)
    zeros = _beside(name, "zero_point")
    if f"{name}_offset" in tensors or (zeros in tensors and tensors[zeros].is_floating_point()):
        raise UnreadableTensor(
            "it is quantised with offsets, which are not unpacked here; analyse the original checkpoint"
        )
    if zeros in tensors:
        weight = weight - _spread(tensors[zeros], weight, _block_size(config))
    return weight * _scales(name, tensors, config)


def _scaled_steps(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    """Return the unit in the last place times s."""
    weight = tensors[name]
    unit = units(weight, weight.dtype) if weight.is_floating_point() else torch.ones(weight.shape)
    return unit * _scales(name, tensors, config).abs()


def _scales(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Tensor:
    weight, scales = tensors[name], tensors[_scale_name(name, tensors)]
    if is_e8m0(scales):  # MXFP8's exponents
        scales = powers_of_2(scales)
    if not scales.is_floating_point() or (scales.dtype.itemsize == 1 and not weight.is_floating_point()):
        raise UnreadableTensor(
            f"it is quantised as {weight.dtype} with scales of type {scales.dtype}, which are not read; analyse the "
            "original checkpoint"
        )
    return _spread(scales, weight, _block_size(config))


def _beside(name: str, part: str) -> str:
    """Return the name of what belongs to a packed tensor: `weight_scale`, or that in torchao's and quanto's forms."""
    for end, start in (("_qdata", "_"), ("._data", "._")):
        if name.endswith(end):
            return f"{name.removesuffix(end)}{start}{part}"
    return f"{name}_{part}"


def _scale_name(name: str, tensors: Mapping[str, Tensor]) -> str:
    named = [_beside(name, part) for part in ("scale_inv", "scale", "weight_scale")]
    named += [f"{name.removesuffix('weight')}scale"]
    found = next((each for each in named if each in tensors), None)
    if found is None:
        raise UnreadableTensor("it is quantised, and its scales are missing; analyse the original checkpoint")
    return found


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


def _with_scales(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Unpacked | FourBitFloats:
    """Return 8-bit numbers with scales, or 4-bit floating point numbers, which are bytes with E8M0 scales."""
    weight, scales = tensors[name], tensors[_scale_name(name, tensors)]
    if is_e8m0(scales) and not weight.is_floating_point():
        return of_octets(weight, scales)
    return _of_pair(_scaled, _scaled_steps, name, tensors, config)


def _nvfp4(name: str, tensors: Mapping[str, Tensor], _: Mapping[str, Any]) -> FourBitFloats:
    """NVFP4 as ModelOpt writes it; the second scale multiplies the first."""
    fused = "_weight" * (f"{name}_weight_scale_2" in tensors)
    scales, second = parts_beside(tensors, [f"{name}{fused}_scale", f"{name}{fused}_scale_2"], "NVFP4")
    return of_octets(tensors[name], scales, second, "NVFP4")


def _compressed(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> PackedWeight | FourBitFloats:
    """Integers, or 4-bit floating point numbers, whose second scale (in NVFP4) divides the first."""
    if tensors[name].dtype != torch.uint8:
        return of_compressed_tensors(name, tensors, config)
    own, known = name.removesuffix("_packed"), "compressed-tensors"
    [scales] = parts_beside(tensors, [f"{own}_scale"], known)
    if is_e8m0(scales):
        return of_octets(tensors[name], scales, packed=known)
    [second] = parts_beside(tensors, [f"{own}_global_scale"], known)
    return of_octets(tensors[name], scales, second, known, divides=True)


def _plain(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> Unpacked | FourBitFloats:
    """Return what is called `weight` with `scales` (MLX) or `scale` (DeepSeek), if these are in E8M0."""
    weight, module = tensors[name], name.removesuffix("weight")
    scales = next((tensors[f"{module}{each}"] for each in ("scales", "scale") if f"{module}{each}" in tensors), None)
    if scales is None or not is_e8m0(scales):
        raise refusal("integers with scales", "nothing tells what they mean")
    if weight.is_floating_point():
        return _of_pair(_scaled, _scaled_steps, name, tensors, config)
    return of_octets(weight, scales)


_Function = Callable[[str, Mapping[str, Tensor], Mapping[str, Any]], Tensor]


def _of_pair(
    read: _Function, steps: _Function, name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]
) -> Unpacked:
    return Unpacked(partial(read, name, tensors, config), partial(steps, name, tensors, config))


_Form = Callable[[str, Mapping[str, Tensor], Mapping[str, Any]], Unpacked | PackedWeight | FourBitFloats]
_FORMATS: dict[str, _Form] = {
    "fp8 with scales": _with_scales,
    "integers or fp8 with scales": _with_scales,
    "torchao": _with_scales,
    "quanto": _with_scales,
    "bitsandbytes, 8 bits": partial(_of_pair, _by_rows, _by_rows_steps),
    "bitsandbytes, 4 bits": partial(_of_pair, _four_bits, _four_bits_steps),
    "MXFP4": of_blocks,
    "NVFP4": _nvfp4,
    "compressed-tensors": _compressed,
    "GPTQ or AWQ": of_gptq_or_awq,
    "HQQ": of_hqq,
    "MLX": of_mlx,
    "integers with scales": _plain,
}
NEVER_UNPACKED = FORMAT_NAMES - _FORMATS.keys()
"""Formats that are known by their names, and not unpacked here."""
