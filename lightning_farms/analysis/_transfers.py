"""Numbers of many layers that leave each device together, and which layers are finite by them."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from lightning_farms.analysis._failures import Failed, Failure, attempted, failed, separated
from lightning_farms.analysis._plan import Plan
from lightning_farms.functional.spectrum import holds_squares, promoted


def on_host(tensors: dict[int, Tensor]) -> dict[int, list[float] | Exception]:
    """Values of equally long tensors, with one transfer from each device; one by one where that fails."""
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for index, each in tensors.items():
        by_device[each.device].append(index)
    found: dict[int, list[float] | Exception] = {}
    for indices in by_device.values():
        together = attempted(_values, [tensors[index] for index in indices])
        if isinstance(together, Exception):
            found |= {index: attempted(tensors[index].tolist) for index in indices}
        else:
            found.update(zip(indices, together, strict=True))
    return found


def _values(tensors: list[Tensor]) -> list[list[float]]:
    values: list[list[float]] = torch.stack(tensors).tolist()
    return values


def finite_layers(plans: dict[int, Plan]) -> tuple[dict[int, Plan], dict[int, Failed]]:
    """The layers whose weights are all finite, with one transfer from each device, and why the others are not there."""
    sums, errors = separated({index: attempted(_has_finite_sum, plan) for index, plan in plans.items()})
    finite: dict[int, Plan] = {}
    failures = {index: failed(error) for index, error in errors.items()}
    for index, outcome in on_host(sums).items():
        # a sum of finite numbers may overflow
        known = attempted(_is_finite, plans[index]) if outcome == [0.0] else outcome
        if isinstance(known, Exception):
            failures[index] = failed(known)
        elif known == [2.0]:
            failures[index] = Failed(Failure.SQUARES)
        elif known == [0.0]:
            failures[index] = Failed(Failure.NOT_FINITE)
        else:
            finite[index] = plans[index]
    return {index: finite[index] for index in plans if index in finite}, failures


def _has_finite_sum(plan: Plan) -> Tensor:
    """(1,), 1 or 0: the quickest test by far; of double precision, 2 where it does not hold the squares."""
    matrices = promoted(plan.weight.matrices)
    finite = matrices.sum().isfinite().double().view(1)
    if matrices.dtype.to_real() != torch.float64:
        return finite
    return finite.where(holds_squares(matrices.flatten(0, -2), matrices.dtype), 2.0)


def _is_finite(plan: Plan) -> list[float]:
    return [float(promoted(plan.weight.matrices).isfinite().all())]
