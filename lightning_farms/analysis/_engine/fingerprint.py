"""Fingerprints that tell whether a tensor's bits have changed, whoever wrote them and however."""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

Fingerprint = tuple[int, ...]

_AT_ONCE = 2**20  # entries whose products are held at a time
_SEEDS = (0x243F6A8885A308D3, 0x13198A2E03707344)  # two sums, as one misses a change of all signs once in 2^33


def fingerprints(tensors: Mapping[int, Tensor]) -> dict[int, Fingerprint]:
    """Return each tensor's fingerprint: SHA-256 on the CPU, elsewhere sums with one transfer from each device."""
    found: dict[int, Fingerprint] = {}
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for index, tensor in tensors.items():
        if tensor.device.type == "cpu":
            found[index] = _digest(tensor)
        else:
            by_device[tensor.device].append(index)
    for indices in by_device.values():
        sums = torch.stack([sums_of_bits(tensors[index]) for index in indices]).tolist()
        found |= {index: tuple(each) for index, each in zip(indices, sums, strict=True)}
    return found


def _digest(tensor: Tensor) -> Fingerprint:
    plain = tensor.detach().resolve_conj().resolve_neg().contiguous()
    return tuple(hashlib.sha256(plain.view(torch.uint8).numpy().data).digest())


def sums_of_bits(tensor: Tensor) -> Tensor:
    r"""Return two sums (2,) of a tensor's bits, :math:`\sum_{ij} a_i b_j x_{ij} \bmod 2^{64}`.

    x are the bits as integers of 32 or 16 bits, a and b are fixed noise. Another tensor has the same sums by chance
    once in 2^66 or less.
    """
    plain = tensor.detach().resolve_conj().resolve_neg()
    real = (torch.view_as_real(plain) if plain.is_complex() else plain).contiguous()
    bits = real.view(torch.int16 if real.element_size() == 2 else torch.int32).flatten(0, -2)
    return torch.stack([_sum_of_bits(bits, seed) for seed in _SEEDS])


def _sum_of_bits(bits: Tensor, seed: int) -> Tensor:
    rows, columns = (_noise(size, each, bits.device) for size, each in zip(bits.shape, (seed, ~seed), strict=True))
    parts = bits.split(max(1, _AT_ONCE // bits.shape[1]))
    sums = torch.cat([(part.to(torch.int64) * columns).sum(-1) for part in parts])
    return (sums * rows).sum()


def _noise(number: int, seed: int, device: torch.device) -> Tensor:
    """Return (number,) random integers of 64 bits by the finaliser of SplitMix64, made on the device that uses them."""
    x = torch.arange(1, number + 1, device=device) * _signed(0x9E3779B97F4A7C15) + _signed(seed & (2**64 - 1))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        x = (x ^ (x >> shift)) * _signed(factor)
    return x ^ (x >> 31)


def _signed(number: int) -> int:
    return number - 2**64 if number >= 2**63 else number
