"""Division of an analysis among processes: which one analyses which layer, and how they exchange numbers."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import NamedTuple, TypeVar
from zlib import crc32

import torch
from torch import Tensor

_Result = TypeVar("_Result")


class Ranks(NamedTuple):
    """The processes that share an analysis."""

    rank: int
    world_size: int
    sum: Callable[[Tensor], Tensor]


def owners(costs: Mapping[str, float], world_size: int) -> dict[str, int]:
    """Assign each layer to a rank: the most expensive first, each to the rank with the least work so far.

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


class FailedOnRankError(RuntimeError):
    """Another rank has failed and reports why; all ranks know of it by now."""


def together(stage: Callable[[], _Result], ranks: Ranks | None) -> _Result:
    """Run a stage on all ranks or on none: if it raises on one, the others raise that it did; a collective.

    If a rank fails before :func:`check_same_layers` within the stage, the other ranks learn of it there; if it fails
    later, here.
    """
    try:
        outcome = stage()
    except FailedOnRankError:
        raise
    except Exception:
        with suppress(FailedOnRankError):
            _exchange(math.nan, ranks)
        raise
    _exchange(0.0, ranks)
    return outcome


def check_same_layers(names: Sequence[str], ranks: Ranks) -> None:
    """Make sure that all ranks have found the same layers, before they sum a table of them; a collective."""
    if len(set(_exchange(crc32("\n".join(names).encode()), ranks))) > 1:
        raise RuntimeError(
            "Expected all ranks to find the same layers, but they differ. Look for a module whose weights could be "
            "read on some ranks only, e.g. for want of memory."
        )


def _exchange(mine: float, ranks: Ranks | None) -> list[float]:
    """Return the numbers of all ranks; a rank that has failed sends NaN."""
    if ranks is None:
        return [mine]
    numbers = torch.zeros(ranks.world_size, dtype=torch.float64, device="cpu")
    numbers[ranks.rank] = mine
    of_ranks: list[float] = ranks.sum(numbers).tolist()
    failed = [str(rank) for rank, number in enumerate(of_ranks) if math.isnan(number)]
    if failed:
        raise FailedOnRankError(f"Rank {', '.join(failed)} has failed; its own error says why.")
    return of_ranks
