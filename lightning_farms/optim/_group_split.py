"""One parameter group, divided by multiplier while the optimizer updates."""

from collections.abc import Iterable, Mapping, Sequence
from operator import is_
from typing import Any

import torch

from lightning_farms.optim._scaled_group import MEMBERSHIP, Group, ScaledGroup, same


class GroupSplit:
    r"""Gives the layers of one parameter group their own value of one hyperparameter.

    .. math:: v_l = v \cdot m_l

    Scaled groups, one a distinct multiplier, take the group's place in the update; a group whose multipliers are all 1
    needs none, and is itself never changed for it. They are kept from step to step, also when the multipliers change
    but not which of them are equal.

    What the update wrote into them is carried over by `write_back`: a value on which all agree goes to the group; where
    they disagree each keeps its own for the next `open`, and the group shows the first one's, until someone else
    changes the group's. As long as they disagree, one can be divided further (each part then starts with its values)
    but not merged with another. If the update changed the scaled hyperparameter itself, the group's becomes the (first)
    changed value divided by its multiplier, so that the change is kept to rounding; where that multiplier is 0 it is
    lost.
    """

    def __init__(self, group: Group, layer_of: Mapping[torch.Tensor, str], key: str) -> None:
        self.group = group
        self._key = key
        self._params: list[torch.Tensor] = list(group["params"])
        self._layers = [layer_of.get(parameter) for parameter in self._params]
        self._distinct: list[str | None] = list(dict.fromkeys(self._layers))
        self._multipliers: Mapping[str, float] | None = None  # those for which the scaled groups were made
        self._scaled_groups: list[ScaledGroup] = []
        self._kept: Group = {}  # where the scaled groups disagree: what the group shows
        self._disagreed = False  # whether they did anywhere when they were made
        self._base: Any = None  # the scaled hyperparameter at `open`
        self._carried: set[str] = set()  # what has been written back since `open`

    def divides(self, group: Group) -> bool:
        """Tell whether this is the division of `group` as it is now."""
        params = group["params"]
        return group is self.group and len(params) == len(self._params) and all(map(is_, params, self._params))

    @property
    def disagrees(self) -> bool:
        """Whether the scaled groups hold values of their own, to be kept for the next `open`."""
        return bool(self._kept)

    def open(self, multipliers: Mapping[str, float]) -> list[Group]:
        """Return the groups that take this one's place in the update: itself, or its scaled groups, filled."""
        if self._kept:
            self._keep({name: shown for name, shown in self._kept.items() if self.group.get(name) is shown})
        if multipliers is not self._multipliers or bool(self._kept) != self._disagreed:
            self._divide([1.0 if layer is None else multipliers[layer] for layer in self._distinct])
            self._multipliers, self._disagreed = multipliers, bool(self._kept)
        self._base = self.group[self._key]
        self._carried = set()
        for scaled in self._scaled_groups:
            scaled.fill(self.group)
        return [scaled.group for scaled in self._scaled_groups] or [self.group]

    def write_back(self) -> None:
        """Carry over to the group what the update wrote into the scaled groups since `open`.

        It may be done in the middle of the update, and more than once: what the update takes back is taken back here.
        """
        touched = [scaled for scaled in self._scaled_groups if scaled.touched()]
        if not touched and not self._carried:
            return
        names = set(self._kept).union(self._carried, *(scaled.written() for scaled in touched)) - {self._key}
        news, kept = self._agreed(names)
        changed = [scaled for scaled in touched if scaled.scaled_value_changed() and scaled.factor]
        if changed or self._key in self._carried:
            news[self._key] = changed[0].unscaled() if changed else self._base
        self._carried |= news.keys()
        self._keep(kept)
        self.group.update(news)

    def _agreed(self, names: Iterable[str]) -> tuple[Group, Group]:
        """Return what the group is to show, and those of these values on which the scaled groups disagree."""
        shown: Group = {}
        kept: Group = {}
        for name in names:
            values = [scaled.group[name] for scaled in self._scaled_groups if name in scaled.group]
            if values:
                shown[name] = values[0]
                if not all(same(value, values[0]) for value in values):
                    kept[name] = values[0]
        return shown, kept

    def _keep(self, kept: Group) -> None:
        self._kept = kept
        for scaled in self._scaled_groups:
            scaled.keep(kept)

    def _divide(self, factors: Sequence[float]) -> None:
        """Put layers of equal multiplier, and of equal values where the scaled groups disagree, into one."""
        former = {layer: scaled for scaled in self._scaled_groups for layer in scaled.layers}
        parts: dict[tuple[float, int], list[str | None]] = {}
        for layer, factor in zip(self._distinct, factors, strict=True):
            parts.setdefault((factor, id(former[layer]) if self._kept else 0), []).append(layer)
        if not self._kept and set(factors) <= {1.0}:
            parts = {}
        if list(parts.values()) == [scaled.layers for scaled in self._scaled_groups]:
            for scaled, (factor, _) in zip(self._scaled_groups, parts, strict=True):
                scaled.factor = factor
            return
        self._scaled_groups = [
            ScaledGroup(layers, {**self._members(layers), **self._own_values(former.get(layers[0]))}, self._key, factor)
            for (factor, _), layers in parts.items()
        ]

    def _members(self, layers: Sequence[str | None]) -> Group:
        among = set(layers)
        mine = [index for index, layer in enumerate(self._layers) if layer in among]
        return {name: [self.group[name][index] for index in mine] for name in MEMBERSHIP if name in self.group}

    def _own_values(self, former: ScaledGroup | None) -> Group:
        return {name: former.group[name] for name in self._kept if name in former.group} if former else {}
