"""Selects the smallest entries of a matrix, exactly as many as asked for; of equal entries the earlier is taken."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST_PAIRED = 16  # columns up to which comparing all pairs is faster than sorting


def smallest_entries(values: Tensor, count: int) -> Tensor:
    """Mark the `count` smallest entries of a tensor without NaN, counted row after row."""
    return smallest_in_rows(values.reshape(1, -1), count).reshape(values.shape)


def smallest_in_rows(values: Tensor, count: int) -> Tensor:
    """Mark `count` smallest entries of (R, C) in all, shared evenly: the numbers per row differ by at most one.

    The rows whose next candidate is smallest get one more; of equal candidates the earlier row comes first.
    """
    rows = values.shape[0]
    if count == values.numel():
        return torch.ones_like(values, dtype=torch.bool)
    each, extra = divmod(count, rows)
    following = values.kthvalue(each + 1, dim=1).values  # a row's first unmarked entry, unless the row gets one more
    wanted = torch.full((rows,), each, device=values.device)
    wanted[following.argsort(stable=True)[:extra]] += 1
    marked = values < following.unsqueeze(1)
    missing = wanted - marked.sum(1)
    equal = values == following.unsqueeze(1)
    ambiguous = (missing > 0) & (missing < equal.sum(1))
    marked |= equal & (missing > 0).unsqueeze(1) & ~ambiguous.unsqueeze(1)
    for row in ambiguous.nonzero().flatten().tolist():
        places = equal[row].nonzero().flatten()
        marked[row, places[: int(missing[row])]] = True
    return marked


def smallest_of_every(values: Tensor, n: int, m: int) -> Tensor:
    """Mark the n smallest of every m consecutive entries of each row of (R, C), C a multiple of m."""
    groups = values.unflatten(1, (-1, m))
    if m > _MOST_PAIRED:
        order = groups.argsort(dim=2, stable=True)
        return torch.zeros_like(groups, dtype=torch.bool).scatter(2, order[:, :, :n], True).flatten(1)
    rank = torch.zeros_like(groups, dtype=torch.uint8)
    for late in range(m):
        for early in range(late):
            first = groups[:, :, early] <= groups[:, :, late]
            rank[:, :, late] += first
            rank[:, :, early] += ~first
    return (rank < n).flatten(1)
