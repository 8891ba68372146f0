"""Numbers of a few bits that several to a byte hold, and what a packed weight consists of."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor
from lightning_farms.common.checkpoints.shapes import MetaTensors
from lightning_farms.common.texts import shape_text


class PackedWeight(NamedTuple):
    """A weight (..., outputs, inputs) as integers, with scales and zeros (..., outputs, groups) of groups of inputs.

    Attributes:
        numbers: the integers q.
        scales: the scales s.
        groups: the group of each input.
        zeros: the zeros z; 0 if there are none.
        offsets: what is added last, b; 0 if there is nothing.
    """

    numbers: Tensor
    scales: Tensor
    groups: Tensor
    zeros: Tensor | None = None
    offsets: Tensor | None = None

    def read(self) -> Tensor:
        """Return (q - z) s + b, in float32."""
        values = self.numbers.to(torch.float32)
        if self.zeros is not None:
            values = values - self._of_inputs(self.zeros)
        values = values * self._of_inputs(self.scales)
        return values if self.offsets is None else values + self._of_inputs(self.offsets)

    def steps(self) -> Tensor:
        """Return how far apart the numbers are that an entry can have, the size of s."""
        return self._of_inputs(self.scales).abs().expand(self.numbers.shape)

    def _of_inputs(self, factors: Tensor) -> Tensor:
        return factors.to(torch.float32).index_select(-1, self.groups)


def unpacked_bits(packed: Tensor, bits: int) -> Tensor:
    """Return the unsigned integers of 1 to 8 bits that lie in a row one after the other, low bits first."""
    octets = packed.contiguous().view(torch.uint8)
    size = bits // math.gcd(bits, 8)  # octets that hold whole numbers
    octets = pad(octets, (0, -octets.shape[-1] % size))
    parts = octets.unflatten(-1, (octets.shape[-1] // size, size)).unbind(-1)
    words = parts[0] if size == 1 else _word(parts)
    numbers = [(words >> shift) & (2**bits - 1) for shift in range(0, 8 * size, bits)]
    return torch.stack([each.to(torch.uint8) for each in numbers], -1).flatten(-2)


def _word(octets: Sequence[Tensor]) -> Tensor:
    word = octets[0].to(torch.int64)
    for place, octet in enumerate(octets[1:], 1):
        word = word | octet.to(torch.int64) << 8 * place
    return word


def even_groups(inputs: int, count: int, packed: str, device: torch.device) -> Tensor:
    """Return the group of each input if a number of groups share them evenly."""
    if not count or inputs % count:
        raise refusal(packed, f"{count} scales do not divide its {inputs} inputs")
    return torch.arange(inputs, device=device) // (inputs // count)


def listed_groups(listed: Tensor, inputs: int, count: int, packed: str) -> Tensor:
    """Return the group of each input as a file lists them."""
    if listed.shape != (inputs,) or listed.is_floating_point():
        raise refusal(packed, f"g_idx {shape_text(listed.shape)} does not fit its {inputs} inputs")
    if not listed.is_meta and inputs and not 0 <= int(listed.min()) <= int(listed.max()) < count:
        raise refusal(packed, f"g_idx names groups that are not among its {count}")
    return listed.to(torch.int64)


def parts_beside(tensors: Mapping[str, Tensor], names: Iterable[str], packed: str) -> list[Tensor]:
    """Return tensors of a file that are needed to unpack a weight."""
    names = list(names)
    missing = [name.rpartition(".")[2] for name in names if name not in tensors]
    if missing:
        raise refusal(packed, f"{' and '.join(missing)} is missing beside it")
    return [tensors[name] for name in names]


_MOST = 1024


def small_values(name: str, tensors: Mapping[str, Tensor]) -> list[int]:
    """Return the integers of a small tensor that describes another one, also if only shapes are asked for."""
    stored = tensors.stored if isinstance(tensors, MetaTensors) else tensors
    described = tensors[name]
    if described.numel() > _MOST or described.is_floating_point() or described.is_complex():
        return []
    return [int(value) for value in stored[name].flatten().tolist()]


def refusal(packed: str, why: str) -> UnreadableTensor:
    """Return the error of a packed weight that cannot be unpacked."""
    return UnreadableTensor(
        f"it is quantised ({packed}) and cannot be unpacked: {why}; analyse the original checkpoint"
    )


def quantisation(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a configuration says about how a model is quantised."""
    for key in ("quantization_config", "compression_config", "quantization"):
        settings = config.get(key)
        if isinstance(settings, Mapping):
            return settings
    return {}
