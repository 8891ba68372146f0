"""Detection of optimizers that depend on the order, position or identity of their groups."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from types import CodeType
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_farms.optim._code_of import mentions, methods_code, read_of_first_group
from lightning_farms.optim._scaled_group import Group

_TORCHS_OWN = ("param_groups", "state", "defaults")


def by_position(optimizer: Optimizer) -> str | None:
    """Name an attribute that its update pairs with the groups by their positions; None if there is none."""
    code = methods_code(optimizer).values()
    for name, value in vars(optimizer).items():
        if name in _TORCHS_OWN or name.startswith("_optimizer_"):
            continue
        if _as_long(value, optimizer.param_groups):
            using = [method for method in code if mentions(method, name)]
            if any(map(_pairs_groups, using)) or (using and _are_values_of(value, optimizer.param_groups)):
                return name
    return None


def by_parameters_order(optimizer: Optimizer, layer_of: Mapping[torch.Tensor, str]) -> str | None:
    """Name an attribute that is a list with a tensor per parameter, paired with them by order; None if there is none.

    Such a list does no harm if the parameters of each layer follow one another.
    """
    params = [p for group in optimizer.param_groups for p in group["params"]]
    layers = [[layer_of.get(p) for p in group["params"]] for group in optimizer.param_groups]
    if len(params) < 2 or not any(map(_is_reordered, layers)):
        return None
    code = methods_code(optimizer).values()
    known = set(params)
    for name, value in vars(optimizer).items():
        if name in _TORCHS_OWN or not isinstance(value, (list, tuple)) or len(value) != len(params):
            continue
        values = all(isinstance(entry, torch.Tensor) and entry not in known for entry in value)
        if values and any(mentions(c, name) and mentions(c, "param_groups") for c in code):
            return name
    return None


def _is_reordered(layers: Sequence[str | None]) -> bool:
    """Whether dividing a group whose parameters are of these layers, those of none last, changes their order."""
    runs = [layer for layer, _ in groupby(layers)]
    return None in runs[:-1] or len(set(runs)) < len(runs)


def _pairs_groups(code: CodeType) -> bool:
    return mentions(code, "param_groups") and any(mentions(code, name) for name in ("zip", "enumerate", "range"))


def by_identity(optimizer: Optimizer) -> str | None:
    """Name an attribute that is a dict keyed by the groups' ids; None if there is none."""
    ids = {id(group) for group in optimizer.param_groups}
    found = (n for n, v in vars(optimizer).items() if isinstance(v, dict) and v and set(v) <= ids)
    return next(found, None)


def one_step_size(optimizer: Optimizer, key: str) -> bool:
    """Whether the update uses the first group's hyperparameter, or a step size that it learns, for all groups."""
    if any("d" in group and ("d0" in group or "growth_rate" in group) for group in optimizer.param_groups):
        return True
    codes = methods_code(optimizer).items()
    read = set().union(*(read_of_first_group(code) for name, code in codes if "step" in name or "update" in name))
    return key in read or "d" in read


def _as_long(value: Any, groups: Sequence[Group]) -> bool:  # noqa: ANN401
    if isinstance(value, (list, tuple)):
        return len(value) == len(groups)
    return isinstance(value, dict) and set(value) == set(range(len(groups)))


def _are_values_of(value: Any, groups: Sequence[Group]) -> bool:  # noqa: ANN401
    entries = list(value) if isinstance(value, (list, tuple)) else [value[index] for index in range(len(groups))]
    if not all(type(entry) in (int, float) for entry in entries):
        return False
    return any(
        all(entry == group.get(name) for entry, group in zip(entries, groups, strict=True)) for name in groups[0]
    )
