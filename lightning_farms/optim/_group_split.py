"""Division of one parameter group into scaled groups while the optimizer updates."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from operator import is_
from typing import Any

import torch

from lightning_farms.optim._own_values import (
    Seal,
    are_same,
    assigned,
    can_change_in_place,
    copied,
    divisible,
    equal,
    is_container,
    part,
    positions,
    same,
    whole,
)
from lightning_farms.optim._scaled_group import MEMBERSHIP, Group, ScaledGroup
from lightning_farms.optim._watched_group import StandIn


class GroupSplit:
    r"""Gives the layers of one parameter group their own value of one hyperparameter.

    .. math:: v_l = v \cdot m_l

    Scaled groups take the group's place in the update: one per layer (with parameters without a layer last), or one per
    distinct multiplier if layers may be `merged`. The latter is faster, but gives the same result only if the optimizer
    updates each parameter by itself. A group whose multipliers are all 1 needs no scaled groups, and is never changed.
    Scaled groups are kept from step to step, even if the multipliers change, as long as the division stays the same.

    `write_back` carries over what the update wrote into the scaled groups. A value on which all agree goes to the
    group; if they disagree, each keeps its own for the next `open`, and the group shows that of the first, until the
    group's is changed by others. If the update changed the scaled hyperparameter itself, the group's becomes the
    (first) changed value divided by its multiplier, so that the change is kept up to rounding; if the multiplier is 0,
    it is lost.

    Tensors and containers (except `common` ones) with entries for single parameters are divided along with them, and
    put together again. For all others, the first scaled group has the group's own value, and each other one keeps a
    copy from step to step; whether these are equal is checked only when all multipliers become 1, since that waits for
    a device.
    """

    def __init__(
        self,
        group: Group,
        layer_of: Mapping[torch.Tensor, str],
        key: str,
        *,
        merged: bool = False,
        plain: bool = False,
        common: Collection[str] = (),
    ) -> None:
        self.group = group
        self._key = key
        self._merged, self._plain = merged, plain
        self._common = common  # values that are never divided with the parameters
        self._members = positions(group["params"])
        self._params: list[torch.Tensor] = list(group["params"])
        self._layers = [layer_of.get(parameter) for parameter in self._params]
        self._distinct: list[str | None] = sorted(dict.fromkeys(self._layers), key=lambda layer: layer is None)
        self._multipliers: Mapping[str, float] | None = None  # those for which the scaled groups were made
        self.scaled_groups: list[ScaledGroup] = []
        self._kept: Group = {}  # values on which the scaled groups disagree, as the group shows them
        self._seals: dict[str, Seal] = {}  # seals of values that can change in place and were handed out
        self._base: Any = None  # the scaled hyperparameter at `open`
        self._carried: set[str] = set()  # names of values that have been written back since `open`
        self._source: Group = {}  # the group as it was when the scaled groups were filled
        self._as_filled: list[Any] = []  # the values of all scaled groups, as filled
        self._in_force: list[Group] = [group]  # a new list whenever the groups in force are others
        self._is_filled = False  # whether nothing but the group itself has changed since filling

    def divides(self, group: Group) -> bool:
        """Whether this is the division of `group` as it is now."""
        return group is self.group and are_same(group["params"], self._params)

    def must_stay(self, multipliers: Mapping[str, float]) -> bool:
        """Whether the scaled groups hold values of their own, so that they are needed even if all multipliers are 1."""
        self._forget_changed()
        if multipliers is self._multipliers:
            return bool(self._kept or self._seals)
        return bool(self._kept or self._own_names())

    def open(self, multipliers: Mapping[str, float]) -> list[Group]:
        """Return the groups that take this one's place in the update: itself, or its filled scaled groups."""
        if self._kept:
            self._forget_changed()
        if multipliers is not self._multipliers:
            self._is_filled = False
            self._divide([1.0 if layer is None else multipliers[layer] for layer in self._distinct])
            self._in_force = [scaled.group for scaled in self.scaled_groups] or [self.group]
            self._multipliers = multipliers  # last, so that all is done again after an interruption
        self._base = self.group[self._key]
        if self._carried:
            self._carried = set()
        if self.scaled_groups:
            self._fill()
        return self._in_force

    def _fill(self) -> None:
        """Fill the scaled groups, or only rescale the scaled number if nothing else differs from the last time."""
        base, former = self._base, self._source.get(self._key)
        filled, self._is_filled = self._is_filled, False  # False until written back, in case of an interruption
        self._source[self._key] = base
        if filled and self._base_is_number() and type(former) in (float, int) and self._is_as_filled():
            if base is former:
                return
            for scaled in self.scaled_groups:
                scaled.rescale(base)
        else:
            if len(self.scaled_groups) > 1:
                self._hand_out()
            for scaled in self.scaled_groups:
                scaled.fill(self.group)
            self._source = dict(self.group)
        if len(self.scaled_groups) > 1:
            self._as_filled = list(self._values())

    def _is_as_filled(self) -> bool:
        """Whether the group holds what it held when the scaled groups were filled."""
        return self.group.keys() == self._source.keys() and are_same(self.group.values(), self._source.values())

    def _values(self) -> Iterator[Any]:
        return chain.from_iterable(dict.values(scaled.group) for scaled in self.scaled_groups)

    def _touched(self) -> list[ScaledGroup]:
        """Return the scaled groups in which anything differs from what was filled in."""
        seen_at_once = len(self.scaled_groups) > 1 and self._base_is_number() and not self._is_written()
        if seen_at_once and all(map(is_, self._values(), self._as_filled)):
            return []
        return [scaled for scaled in self.scaled_groups if scaled.touched()]

    def _is_written(self) -> bool:
        """Whether a scaled group reports that something was written into it."""
        return any(scaled.is_written() for scaled in self.scaled_groups)

    def _base_is_number(self) -> bool:
        """Whether the scaled hyperparameter is a number, which cannot change in place."""
        return type(self._base) in (float, int)

    def write_back(self, *, before_update: bool = False) -> None:
        """Carry over to the group what the update wrote into the scaled groups since `open`.

        It may be called in the middle of the update, and repeatedly: if the update reverts a value, so does this.
        `before_update` means before a closure, where a step has hardly begun: a nearly free check then tells that
        nothing was written, and writes that it misses (``dict.update(group, ...)``) are carried over after the step.
        """
        if not self.scaled_groups:
            return
        if before_update and self._base_is_number() and not (self._carried or self._seals):
            self._is_filled = not self._is_written()
            if self._is_filled:
                return
        touched = self._touched()
        self._is_filled = not (touched or self._carried or self._seals)
        if self._is_filled:
            return
        names = set(self._kept).union(self._carried, *(scaled.written() for scaled in touched)) - {self._key}
        names.update(name for name in self._seals if is_container(self.group.get(name)))
        news, kept = self._agreed(names)
        changed = [scaled for scaled in touched if scaled.scaled_value_changed() and scaled.factor]
        if changed or self._key in self._carried:
            news[self._key] = changed[0].unscaled() if changed else self._base
        self._carried |= news.keys()
        self.group.update(news)
        self._keep(kept)
        if len(self.scaled_groups) > 1:
            self._seal()

    def pass_on_what_was_read(self, *, keep: bool) -> None:
        """If the group is itself a scaled one, mark as read in it what was read in its own scaled groups."""
        if isinstance(self.group, StandIn):
            for scaled in self.scaled_groups:
                self.group.read |= scaled.read()
                if not keep:
                    scaled.forget_read()

    def own_values(self) -> list[tuple[list[str | None], Group]]:
        """Return the layers of each scaled group, and the values on which they disagree."""
        names = [*self._kept, *self._own_names()]
        if not names:
            return []
        return [(s.layers, {name: s.group[name] for name in names if name in s.group}) for s in self.scaled_groups]

    def take_over(self, own_values: Sequence[tuple[Sequence[str | None], Group]]) -> None:
        """Give layers own values to start with, as far as both still exist and the group shows the first layer's."""
        known = {layer: values for layers, values in own_values for layer in layers}
        first = known.get(self._distinct[0], {})
        names = [name for name in first if name in self.group and equal(self._as_shown(name, first), self.group[name])]
        self.scaled_groups = []
        for number, layer in enumerate(self._distinct):
            values = known.get(layer, first)
            own = {name: self._as_shown(name, values) if number else self.group[name] for name in names}
            self.scaled_groups.append(self._scaled_group([layer], {**self._members_of([layer]), **own}))
        self._multipliers, self._is_filled = None, False
        self._kept = {name: self.group[name] for name in names if not can_change_in_place(self.group[name])}
        self._seals = {name: Seal(self.group[name]) for name in names if name not in self._kept}

    def _as_shown(self, name: str, values: Group) -> Any:  # noqa: ANN401
        """Return a copy of one of the values, on the device of the group's value."""
        shown, value = self.group[name], copied(values.get(name, self.group[name]), self._members)
        both = isinstance(shown, torch.Tensor) and isinstance(value, torch.Tensor)
        return value.to(shown.device) if both else value

    def _agreed(self, names: Iterable[str]) -> tuple[Group, Group]:
        """Return the values that the group is to show, and those among them on which the scaled groups disagree."""
        shown: Group = {}
        kept: Group = {}
        for name in names:
            holders = [scaled for scaled in self.scaled_groups if name in scaled.group]
            values = [scaled.group[name] for scaled in holders]
            if any(map(can_change_in_place, values)):
                shown[name] = self._put_together(name, holders)
            elif values:
                shown[name] = values[0]
                if not all(same(value, values[0]) for value in values):
                    kept[name] = values[0]
        return shown, kept

    def _put_together(self, name: str, holders: Sequence[ScaledGroup]) -> Any:  # noqa: ANN401
        first = holders[0].group[name]
        if len(self.scaled_groups) == 1 or not any(self._divides_value(name, s.group[name], s) for s in holders):
            return first
        value = whole([(scaled.group[name], scaled.members) for scaled in holders], self._members)
        in_place = all(name in scaled.put and scaled.group[name] is scaled.put[name] for scaled in holders)
        return assigned(self.group.get(name), value) if in_place else value

    def _divides_value(self, name: str, value: object, scaled: ScaledGroup) -> bool:
        return name not in self._common and divisible(value, scaled.members)

    def _forget_changed(self) -> None:
        """Drop own values of the scaled groups where someone else has changed the group's value."""
        if self._kept:
            self._keep({name: shown for name, shown in self._kept.items() if self.group.get(name) is shown})

    def _keep(self, kept: Group) -> None:
        self._kept = kept
        for number, scaled in enumerate(self.scaled_groups):
            own = [
                name
                for name, value in scaled.group.items()
                if can_change_in_place(value) and (number or value is not self.group.get(name))
            ]
            scaled.keep({*kept, *own} - {self._key})

    def _seal(self) -> None:
        """Seal the values as they are now, except those of which the first scaled group is still to get its part."""
        first = self.scaled_groups[0]
        seals = {}
        for name, value in self.group.items():
            if can_change_in_place(value) and name not in MEMBERSHIP and name != self._key:
                undivided = first.group.get(name) is value and name not in self._common
                if not (undivided and divisible(value, self._members)):
                    seals[name] = Seal(value)
        self._seals = seals

    def _hand_out(self) -> None:
        """Give each scaled group its part or copy of values that are new in the group or were changed by others."""
        for name, value in self.group.items():
            if not can_change_in_place(value) or name in MEMBERSHIP or name == self._key:
                continue
            if name in self._seals and self._seals[name].holds(value):
                continue
            divided = name not in self._common and divisible(value, self._members)
            for number, scaled in enumerate(self.scaled_groups):
                scaled.own.pop(name, None)
                if divided:
                    scaled.own[name] = part(value, self._members, scaled.members, copies=bool(number))
                elif number:
                    scaled.own[name] = copied(value, self._members)
            self._seals[name] = Seal(value)
        for name in [name for name in self._seals if not can_change_in_place(self.group.get(name))]:
            for scaled in self.scaled_groups:
                scaled.own.pop(name, None)
            del self._seals[name]

    def _own_names(self) -> list[str]:
        """Name the in-place changeable values on which the scaled groups disagree (waits for their device)."""
        if len(self.scaled_groups) < 2:
            return []
        return [name for name, seal in self._seals.items() if seal.holds(self.group.get(name)) and self._differ(name)]

    def _differ(self, name: str) -> bool:
        for_all = [
            part(s.group[name], s.members, {}, copies=False)
            if self._divides_value(name, s.group[name], s)
            else s.group[name]
            for s in self.scaled_groups
            if name in s.group
        ]
        return not all(equal(value, for_all[0]) for value in for_all[1:])

    def _divide(self, factors: Sequence[float]) -> None:
        """Make a scaled group for each layer, or for all layers of one multiplier, unless there is nothing to scale."""
        parts: dict[object, list[str | None]] = {}
        for layer, factor in zip(self._distinct, factors, strict=True):
            parts.setdefault(factor if self._merged else layer, []).append(layer)
        if set(factors) <= {1.0} and not (self._kept or self._own_names()):
            parts = {}
        factor_of = dict(zip(self._distinct, factors, strict=True))
        if list(parts.values()) != [scaled.layers for scaled in self.scaled_groups]:
            self.scaled_groups = [self._scaled_group(layers, self._members_of(layers)) for layers in parts.values()]
            self._seals = {}
        for scaled in self.scaled_groups:
            scaled.factor = factor_of[scaled.layers[0]]

    def _scaled_group(self, layers: list[str | None], own: Group) -> ScaledGroup:
        return ScaledGroup(layers, own, self._key, 1.0, plain=self._plain)

    def _members_of(self, layers: Sequence[str | None]) -> Group:
        among = set(layers)
        mine = [index for index, layer in enumerate(self._layers) if layer in among]
        return {name: [self.group[name][index] for index in mine] for name in MEMBERSHIP if name in self.group}
