"""Which process analyses which layer, and how their numbers come together."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

from torch import Tensor


class Ranks(NamedTuple):
    """The processes that share an analysis.

    Attributes:
        rank: number of this process.
        world_size: number of processes.
        sum: returns the sum over all processes of a float64 tensor on the CPU, on the CPU; a collective.
    """

    rank: int
    world_size: int
    sum: Callable[[Tensor], Tensor]


def owners(costs: Mapping[str, float], world_size: int) -> dict[str, int]:
    """Give each layer to a rank: the dearest first, each to the rank that has least to do so far.

    Args:
        costs: {layer: cost}.
        world_size: number of ranks, at least 1.

    Returns:
        {layer: rank}, the same on every rank.

    Example:
        >>> owners({"a": 1.0, "b": 3.0, "c": 2.0}, 2)
        {'b': 0, 'c': 1, 'a': 1}

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
