"""Whole numbers out of fractions: largest remainders, and a budget filled as far as it goes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

_MOST_BITS = 1 << 31  # of all tables of sums together: 256 MiB


def give_rest(wanted: Sequence[Fraction], most: Sequence[int], total: int) -> list[int]:
    """Round to whole numbers of the given sum, which is at most that of `most`, by largest remainders."""
    given = [min(int(value), bound) for value, bound in zip(wanted, most, strict=True)]
    order = by_remainder([value - int(value) for value in wanted])
    rest = total - sum(given)
    while rest > 0:  # once, and again where bounds stop those that come first
        for index in order:
            if rest > 0 and given[index] < most[index]:
                given[index] += 1
                rest -= 1
    return given


def fill_budget(units: Sequence[int], remainders: Sequence[Fraction], budget: int) -> list[int]:
    """Choose among things of a price: as near to the budget as possible, never above it, largest remainders first.

    Returns 1 for the chosen, 0 for the others; only what has a remainder is chosen. The sums that can be reached are
    bits of integers. Where these would be too long, the largest remainders that fit are taken.
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
    reachable = [1]  # after each thing; bit s: the sum s can be reached with the things so far
    for price in prices:
        reachable.append((reachable[-1] | reachable[-1] << price) & ((1 << limit + 1) - 1))
    left = reachable[-1].bit_length() - 1
    for place in reversed(range(len(order))):  # the smallest remainder is left out where the sum can do without
        if not reachable[place] >> left & 1:
            chosen[order[place]], left = 1, left - prices[place]
    return chosen


def by_remainder(remainders: Sequence[Fraction]) -> list[int]:
    """Positions in the order of falling remainders, equal ones as they stand."""
    return sorted(range(len(remainders)), key=lambda index: -remainders[index])
