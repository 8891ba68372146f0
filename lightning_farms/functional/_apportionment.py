"""Turns fractions into whole numbers: by largest remainders, or by filling a budget as far as possible."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

_MOST_BITS = 1 << 31  # limit for all tables of sums together: 256 MiB


def give_rest(wanted: Sequence[Fraction], most: Sequence[int], total: int) -> list[int]:
    """Round to whole numbers that add up to `total` (at most the sum of `most`), by largest remainders."""
    given = [min(int(value), bound) for value, bound in zip(wanted, most, strict=True)]
    order = by_remainder([value - int(value) for value in wanted])
    rest = total - sum(given)
    while rest > 0:  # one round, and further ones if the first in order have reached their bounds
        for index in order:
            if rest > 0 and given[index] < most[index]:
                given[index] += 1
                rest -= 1
    return given


def fill_budget(units: Sequence[int], remainders: Sequence[Fraction], budget: int) -> list[int]:
    """Choose items whose prices add up as near to the budget as possible, never above it, largest remainders first.

    Returns 1 for the chosen items and 0 for the others; only items with a remainder are chosen. The sums that can be
    reached are stored as bits of integers. If these would be too long, the largest remainders that fit are taken.
    """
    order = [index for index in by_remainder(remainders) if remainders[index] > 0]
    divisor = math.gcd(*(units[index] for index in order)) or 1
    prices, limit = [units[index] // divisor for index in order], budget // divisor
    chosen = [0] * len(units)
    if limit * len(order) > _MOST_BITS:
        for index, price in zip(order, prices, strict=True):
            if price <= limit:
                chosen[index], limit = 1, limit - price
        return chosen
    reachable = [1]  # one entry after each item; bit s: the sum s can be reached with the items so far
    for price in prices:
        reachable.append((reachable[-1] | reachable[-1] << price) & ((1 << limit + 1) - 1))
    left = reachable[-1].bit_length() - 1
    for place in reversed(range(len(order))):  # the smallest remainder is left out if the sum is reached without it
        if not reachable[place] >> left & 1:
            chosen[order[place]], left = 1, left - prices[place]
    return chosen


def by_remainder(remainders: Sequence[Fraction]) -> list[int]:
    """Positions sorted by descending remainder; equal remainders keep their order."""
    return sorted(range(len(remainders)), key=lambda index: -remainders[index])
