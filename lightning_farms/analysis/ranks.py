"""Which process analyses which layer, and how their numbers come together."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple
from zlib import crc32

import torch
from torch import Tensor


class Ranks(NamedTuple):
    """The processes that share an analysis."""

    rank: int
    world_size: int
    sum: Callable[[Tensor], Tensor]


def owners(costs: Mapping[str, float], world_size: int) -> dict[str, int]:
    """Give each layer to a rank: the dearest first, each to the rank that has least to do so far.

    Reference:
        Graham, SIAM Journal on Applied Mathematics 17 (1969): at most 4/3 of the best possible makespan.
    """
    load = [0.0] * world_size
    owner: dict[str, int] = {}
    for layer in sorted(costs, key=lambda name: (-costs[name], name)):
        rank = load.index(min(load))
        owner[layer] = rank
        load[rank] += costs[layer]
    return owner


def check_same_layers(names: Sequence[str], ranks: Ranks) -> None:
    """Make sure that all ranks have found the same layers, before they sum a table of them; a collective."""
    digests = torch.zeros(ranks.world_size, dtype=torch.float64, device="cpu")
    digests[ranks.rank] = crc32("\n".join(names).encode())
    if len(set(ranks.sum(digests).tolist())) > 1:
        raise RuntimeError(
            "Expected all ranks to find the same layers, but they differ. Look for a module whose weights could be "
            "read on some ranks only, e.g. for want of memory."
        )
