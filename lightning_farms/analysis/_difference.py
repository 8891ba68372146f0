"""Changes of weights from those they started from."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from lightning_farms.analysis._engine.failures import attempted, not_computed
from lightning_farms.analysis._rounding import ranks_clear_of_rounding, rounded_to
from lightning_farms.analysis.weights.layer_weight import NO_MATRICES, LayerWeight
from lightning_farms.common.texts import joined, shape_text


def differences(weights: Iterable[LayerWeight], base: Iterable[LayerWeight]) -> Iterator[LayerWeight]:
    """Yield what training has added to each weight, W - W_base, in float32 at least, on the device of W."""
    before = {weight.name: weight for weight in base}
    for weight in weights:
        start = before.pop(weight.name, None)
        reason = weight.reason or _incomparable(weight, start)
        if reason:
            yield weight._replace(matrices=NO_MATRICES, reason=reason)
        else:
            assert start is not None
            change = attempted(_minus, weight.matrices, start.matrices)
            if isinstance(change, Exception):
                yield weight._replace(matrices=NO_MATRICES, reason=not_computed(change))
            else:
                remark = joined(weight.remark, start.remark and f"in the base: {start.remark}")
                after = weight._replace(matrices=change, rank=_rank(weight, start), remark=remark)
                yield _clear_of_rounding(after, weight, start)


def _clear_of_rounding(change: LayerWeight, weight: LayerWeight, start: LayerWeight) -> LayerWeight:
    """Give a change the rank that stands clear of the rounding of both weights, or a reason if none of it does."""
    if change.matrices.is_meta:
        return change
    if not change.matrices.any():
        return change._replace(matrices=NO_MATRICES, reason="unchanged from the base")
    if change.rank is not None:
        return change
    ranks = attempted(ranks_clear_of_rounding, change.matrices, weight, start)
    if ranks is None or isinstance(ranks, Exception):
        return change
    if not bool(ranks.any()):
        types = " and ".join(dict.fromkeys(map(_numbers, (weight, start))))
        return change._replace(
            matrices=NO_MATRICES, reason=f"unchanged from the base, apart from the rounding of {types}"
        )
    rank = int(ranks.median())
    if rank >= min(change.matrices.shape[-2:]):
        return change
    fitted = f"only the {rank} eigenvalues of each matrix that stand clear of rounding are fitted"
    return change._replace(rank=max(rank, 1), remark=joined(change.remark, fitted))


def _numbers(weight: LayerWeight) -> str:
    """Name the kind of numbers that a weight was rounded to."""
    return "packed numbers" if weight.steps is not None else str(rounded_to(weight.matrices)).removeprefix("torch.")


def _minus(after: Tensor, before: Tensor) -> Tensor:
    """Subtract in float32 at least, as half precision would round; without values if one of the two has none."""
    device = before.device if before.is_meta else after.device
    dtype = torch.promote_types(torch.promote_types(after.dtype, before.dtype), torch.float32)
    return after.to(device, dtype) - before.to(device, dtype)


def _rank(weight: LayerWeight, start: LayerWeight) -> int | None:
    return None if weight.rank is None or start.rank is None else weight.rank + start.rank


def _incomparable(weight: LayerWeight, start: LayerWeight | None) -> str:
    if start is None:
        return "the base has no such layer"
    if start.reason:
        return f"in the base: {start.reason}"
    if start.matrices.shape != weight.matrices.shape:
        return f"the base's weight is of another shape, {shape_text(start.shape)}"
    return ""
