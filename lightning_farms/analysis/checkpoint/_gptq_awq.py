"""Unpacks the weights of GPTQ and AWQ, which have the same names and are told apart by their shapes.

GPTQ: ``qweight`` (inputs x bits / 32, outputs), ``qzeros`` (groups, outputs x bits / 32), ``scales`` (groups, outputs).
AWQ (GEMM): ``qweight`` (inputs, outputs / 8), ``qzeros`` (groups, outputs / 8), ``scales`` (groups, outputs).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis.checkpoint._packed_numbers import (
    PackedWeight,
    even_groups,
    listed_groups,
    parts_beside,
    quantisation,
    refusal,
    unpacked_bits,
)
from lightning_farms.common.texts import shape_text

_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)  # where AWQ puts the eight numbers of each 32 bits
_BITS = (2, 3, 4, 8)
_PLANAR = "gptq_p"  # as the others, unless bits do not divide 32
_OF_FORMAT = {"gptq": 1, "gptq_v2": 0, _PLANAR: 0}  # what is added to the zeros that a file holds
_CALLED = "GPTQ or AWQ"


class _Parts(NamedTuple):
    """The tensors of a weight, and the group of each input if it is listed."""

    numbers: Tensor
    zeros: Tensor
    scales: Tensor
    listed: Tensor | None


def of_gptq_or_awq(name: str, tensors: Mapping[str, Tensor], config: Mapping[str, Any]) -> PackedWeight:
    """Return a weight (outputs, inputs) of GPTQ or AWQ.

    Raises:
        UnreadableTensor: its shapes are of neither, or nothing tells what its zeros mean.
    """
    module = name.removesuffix("qweight")
    zeros, scales = parts_beside(tensors, [f"{module}qzeros", f"{module}scales"], _CALLED)
    listed = tensors.get(f"{module}g_idx")
    parts = _Parts(tensors[name], zeros, scales, listed)
    shapes = {len(part.shape) for part in parts[:3]}
    if shapes == {2} and parts.numbers.dtype == zeros.dtype == torch.int32 and len(zeros) == len(scales):
        (rows, columns), (groups, outputs) = parts.numbers.shape, scales.shape
        bits, rest = divmod(32 * zeros.shape[1], outputs) if outputs and groups and rows else (0, 1)
        if not rest and columns == outputs and 32 * rows % max(bits, 1) == 0:
            return _gptq(parts, bits, _stated(quantisation(config)))
        if not rest and columns == zeros.shape[1] and bits == 4:
            return _awq(parts)
    raise refusal(
        _CALLED,
        f"its shapes are of neither, nor of another form that is known: qweight {shape_text(parts.numbers.shape)}, "
        f"qzeros {shape_text(zeros.shape)}, scales {shape_text(scales.shape)}",
    )


def _awq(parts: _Parts) -> PackedWeight:
    places = torch.tensor(_PLACES, device=parts.numbers.device)

    def in_order(packed: Tensor) -> Tensor:
        eights: Tensor = unpacked_bits(packed, 4).unflatten(-1, (packed.shape[-1], 8))
        return eights.index_select(-1, places).flatten(-2).t()

    groups = even_groups(len(parts.numbers), len(parts.scales), "AWQ", parts.numbers.device)
    return PackedWeight(in_order(parts.numbers), parts.scales.mT, groups, in_order(parts.zeros))


def _stated(settings: Mapping[str, Any]) -> object:
    """Return the form of a checkpoint by its configuration, by default the first one; None if it does not say GPTQ."""
    stated = settings.get("checkpoint_format", settings.get("format"))
    if settings.get("quant_method") == "gptq":
        return stated or "gptq"
    return stated if isinstance(stated, str) and stated in _OF_FORMAT else None


def _gptq(parts: _Parts, bits: int, stated: object) -> PackedWeight:
    if bits not in _BITS or (stated == _PLANAR and bits == 3):
        raise refusal("GPTQ", f"numbers of {bits} bits{' in planes' * (stated == _PLANAR)} are not unpacked here")
    inputs, count = 32 * len(parts.numbers) // bits, len(parts.scales)
    if parts.listed is None or not parts.listed.numel():
        groups = even_groups(inputs, count, "GPTQ", parts.numbers.device)
    else:
        groups = listed_groups(parts.listed, inputs, count, "GPTQ")
    numbers = unpacked_bits(parts.numbers.mT, bits)
    return PackedWeight(numbers, parts.scales.mT, groups, _zeros_of_gptq(parts.zeros, bits, stated).mT)


def _zeros_of_gptq(packed: Tensor, bits: int, stated: object) -> Tensor:
    """Return the zeros (groups, outputs); the first format of checkpoints holds them less 1, with a carry in a word."""
    stored = unpacked_bits(packed, bits)
    if packed.is_meta or not _less_1(stored, bits, stated):
        return stored
    if 32 % bits:
        return torch.bitwise_and(stored + 1, 2**bits - 1)
    ones = sum(1 << place for place in range(0, 32, bits))
    return unpacked_bits(torch.add(packed, ones), bits)


def _less_1(stored: Tensor, bits: int, stated: object) -> bool:
    """Whether the zeros of a file are less by 1, by its configuration or because symmetric ones are in the middle."""
    if isinstance(stated, str) and stated in _OF_FORMAT:
        return bool(_OF_FORMAT[stated])
    if stated is not None:
        raise refusal("GPTQ", f"nothing is known of its format {stated!r}")
    middle = 2 ** (bits - 1)
    for less in (1, 0):
        if bool((stored == middle - less).all()):
            return bool(less)
    raise refusal("GPTQ", "no config.json beside the file tells by `checkpoint_format` whether its zeros are less by 1")
