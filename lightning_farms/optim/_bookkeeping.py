"""What an optimizer knows of its groups beside their values: which comes first, or which is where."""

from collections.abc import Sequence
from typing import Any

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
            pairing = ("zip", "enumerate", "range")
            paired = any(
                mentions(c, name) and mentions(c, "param_groups") and any(mentions(c, p) for p in pairing) for c in code
            )
            used = any(mentions(c, name) for c in code)
            if paired or (used and _are_values_of(value, optimizer.param_groups)):
                return name
    return None


def by_identity(optimizer: Optimizer) -> str | None:
    """Name an attribute that is a dict keyed by the groups' ids; None if there is none."""
    ids = {id(group) for group in optimizer.param_groups}
    found = (n for n, v in vars(optimizer).items() if isinstance(v, dict) and v and set(v) <= ids)
    return next(found, None)


def one_step_size(optimizer: Optimizer, key: str) -> bool:
    """Tell whether the update takes the hyperparameter, or a step size that it learns, of the first group for all."""
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
