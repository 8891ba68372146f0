"""One parameter group, divided by layer while the optimizer updates."""

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import torch

Group = dict[str, Any]
_MEMBERSHIP = ("params", "param_names")
_PLAIN = (bool, int, float, complex, str, bytes)


class GroupSplit:
    r"""Gives the layers of one parameter group their own value of one hyperparameter, between `open` and `close`.

    .. math:: v_l = v \cdot m_l

    If all parameters of the group have the same multiplier, the group itself carries :math:`v \cdot m` while open.
    Otherwise child groups, one a layer, stand in for it and the group itself is not touched. The children are kept
    from step to step; their other hyperparameters are copied from the group at each `open`.

    What the update wrote into the children is carried over at `close`: a value on which all children agree goes to the
    group; where they disagree each child keeps its own for the next `open`, and the group shows the first child's,
    until someone else changes the group's. If the update changed the scaled hyperparameter itself, the group's becomes
    the (first) changed value divided by its multiplier, so that the change is kept to rounding.

    Args:
        group: The optimizer's parameter group.
        layer_of: Layer of each parameter; parameters that it lacks have the multiplier 1.
        key: The hyperparameter to scale.
    """

    def __init__(self, group: Group, layer_of: Mapping[torch.Tensor, str], key: str) -> None:
        self.group = group
        self._key = key
        self._params: list[torch.Tensor] = list(group["params"])
        self._layers = [layer_of.get(parameter) for parameter in self._params]
        self._distinct: list[str | None] = list(dict.fromkeys(self._layers))
        self._children: list[Group] = []
        self._shared: Group = {}  # what open() copied into every child
        self._kept: Group = {}  # where the children disagree: what the group shows
        self._base: Any = None
        self._open: list[_Scaled] = []

    def divides(self, group: Group) -> bool:
        """Tell whether this is the division of `group` as it is now."""
        params = group["params"]
        return (
            group is self.group
            and len(params) == len(self._params)
            and all(new is old for new, old in zip(params, self._params, strict=True))
        )

    def base(self) -> Any:  # noqa: ANN401
        """Return the group's own value of the scaled hyperparameter, also while open."""
        return self._base if self._open else self.group[self._key]

    def open(self, multipliers: Mapping[str, float]) -> list[Group]:
        """Return the groups that stand in for this one in the update."""
        factors = [1.0 if layer is None else multipliers[layer] for layer in self._distinct]
        self._base = self.group[self._key]
        if len(set(factors)) <= 1:
            factor = factors[0] if factors else 1.0
            self._open = [_Scaled(self.group, self._key, factor)]
            return [self.group]
        self._refresh_children()
        self._open = [_Scaled(child, self._key, factor) for child, factor in zip(self._children, factors, strict=True)]
        return self._children

    def close(self) -> None:
        """Put the group back as it was, with what the update changed in it."""
        self.group[self._key] = next((scaled.value_without() for scaled in self._open if scaled.changed()), self._base)
        divided = self._open[0].group is not self.group
        self._open, self._base = [], None
        if divided:
            self._write_back()

    def _refresh_children(self) -> None:
        if not self._children:
            self._children = [self._members(layer) for layer in self._distinct]
        self._kept = {name: shown for name, shown in self._kept.items() if self.group.get(name) is shown}
        self._shared = {
            name: value
            for name, value in self.group.items()
            if name not in _MEMBERSHIP and name not in self._kept and name != self._key
        }
        base = self.group[self._key]
        for child in self._children:
            child.update(self._shared)
            child[self._key] = base
            for name in child.keys() - self.group.keys():
                del child[name]

    def _members(self, layer: str | None) -> Group:
        mine = [index for index, owner in enumerate(self._layers) if owner == layer]
        return {name: [self.group[name][index] for index in mine] for name in _MEMBERSHIP if name in self.group}

    def _write_back(self) -> None:
        for name in self._written():
            values = [child[name] for child in self._children if name in child]
            self.group[name] = values[0]
            if all(_same(value, values[0]) for value in values):
                self._kept.pop(name, None)
            else:
                self._kept[name] = values[0]

    def _written(self) -> Iterator[str]:
        """Name what some child holds otherwise than `open` put it there."""
        known = {*self._shared, *_MEMBERSHIP, self._key}
        changed = {
            name for child in self._children for name, value in self._shared.items() if child.get(name) is not value
        }
        present = {name: None for name in chain.from_iterable(self._children) if name in changed or name not in known}
        return iter(present)


class _Scaled:
    """One group's scaled hyperparameter while open: what was put there, and whether it still is."""

    __slots__ = ("_factor", "_key", "_value", "_version", "group")

    def __init__(self, group: Group, key: str, factor: float) -> None:
        self.group, self._key, self._factor = group, key, factor
        base = group[key]
        self._value = base if factor == 1.0 else base * factor
        self._version = _version(self._value)
        group[key] = self._value

    def changed(self) -> bool:
        value = self.group[self._key]
        return value is not self._value or _version(value) != self._version

    def value_without(self) -> Any:  # noqa: ANN401
        value = self.group[self._key]
        return value if self._factor == 1.0 else value / self._factor


def _version(value: object) -> int | None:
    return value._version if isinstance(value, torch.Tensor) else None


def _same(one: object, other: object) -> bool:
    return one is other or (isinstance(one, _PLAIN) and type(one) is type(other) and one == other)
