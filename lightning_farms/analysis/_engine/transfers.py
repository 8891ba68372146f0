"""Transfers many layers' numbers from each device together, and checks by such numbers which layers are finite."""

from __future__ import annotations

from collections import defaultdict

import torch
from torch import Tensor

from lightning_farms.analysis._engine.failures import Failed, Failure, attempted, failed, separated
from lightning_farms.analysis._engine.plan import Plan
from lightning_farms.functional.spectrum import holds_squares, promoted


def on_host(tensors: dict[int, Tensor]) -> dict[int, list[float] | Exception]:
    """Return the values of equally long tensors, with one transfer from each device, or one by one if that fails."""
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
    """Return the layers whose weights are all finite, and the others' failures, with one transfer from each device."""
    checks, errors = separated({index: attempted(_checks, plan) for index, plan in plans.items()})
    failures = {index: failed(error) for index, error in errors.items()}
    for index, outcome in on_host(checks).items():
        failure = outcome if isinstance(outcome, Exception) else attempted(_failure, plans[index], *outcome)
        if isinstance(failure, Exception):
            failures[index] = failed(failure)
        elif failure is not None:
            failures[index] = Failed(failure)
    return {index: plan for index, plan in plans.items() if index not in failures}, failures


def _checks(plan: Plan) -> Tensor:
    """Return (2,), 1 for yes: is the sum finite (by far the quickest test); does float64 hold the squares."""
    matrices = promoted(plan.weight.matrices)
    finite = matrices.sum().isfinite()
    double = matrices.dtype.to_real() == torch.float64  # float64 holds the squares of all other types
    held = holds_squares(matrices.flatten(0, -2), matrices.dtype) if double else torch.ones_like(finite)
    return torch.stack([finite, held]).double()


def _failure(plan: Plan, has_finite_sum: float, squares_held: float) -> Failure | None:
    if not has_finite_sum and not promoted(plan.weight.matrices).isfinite().all():  # a finite weight's sum may overflow
        return Failure.NOT_FINITE
    return None if squares_held else Failure.SQUARES
