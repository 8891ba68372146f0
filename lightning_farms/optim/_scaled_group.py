"""A parameter group that takes another one's place while the optimizer updates."""

from collections.abc import Collection, Sequence
from operator import is_
from typing import Any

from lightning_farms.optim._own_values import positions, same, version
from lightning_farms.optim._watched_group import StandIn

Group = dict[str, Any]
MEMBERSHIP = ("params", "param_names")


class ScaledGroup:
    """Some of a parameter group's parameters, with the group's hyperparameters and one of them scaled.

    The same dictionary is filled anew before every update; the group itself is only read. `own` are the "params" (and
    "param_names") of `layers`, None for parameters that belong to none, and values that are not the group's.
    A `plain` one is just a dict, which tells nothing of itself (``torch.compile`` of a step takes no other).
    """

    __slots__ = ("_key", "_version", "factor", "group", "layers", "members", "own", "put")

    def __init__(self, layers: list[str | None], own: Group, key: str, factor: float, *, plain: bool = False) -> None:
        self.layers = layers
        self.factor = factor
        self.members = positions(own["params"])
        self.group: Group = dict(own) if plain else StandIn(own)
        self.own = own  # what the group's values do not replace
        self.put: Group = {}  # what `fill` put there
        self._key = key
        self._version: int | None = None  # of the scaled value, if it is a tensor: tells a change in place

    def keep(self, names: Collection[str]) -> None:
        """Let the present values of these hyperparameters stay when the group's are copied, and no others."""
        self.own = {name: value for name, value in self.group.items() if name in MEMBERSHIP or name in names}

    def fill(self, source: Group) -> None:
        """Copy the hyperparameters of the group `source`, scaling one."""
        mine = self.group
        dict.update(mine, source)
        dict.update(mine, self.own)
        if len(mine) > len(source):
            for name in mine.keys() - source.keys():
                del mine[name]
        base = source[self._key]
        value = base if self.factor == 1.0 else base * self.factor
        dict.__setitem__(mine, self._key, value)
        if isinstance(mine, StandIn):
            mine.written = False
        self._version = version(value)
        self.put = dict(mine)

    def rescale(self, base: float) -> None:
        """Scale a plain number anew, where everything else is as `fill` put it there."""
        self.put[self._key] = base if self.factor == 1.0 else base * self.factor
        dict.__setitem__(self.group, self._key, self.put[self._key])

    def read(self) -> set[str]:
        """Name what was read of the group: of a plain one, what is known to be."""
        return self.group.read if isinstance(self.group, StandIn) else {"params", self._key}

    def forget_read(self) -> None:
        """Start anew to note what is read."""
        if isinstance(self.group, StandIn):
            self.group.read.clear()

    def is_written(self) -> bool:
        """Tell whether the group says that something was put into it; a plain one does not say."""
        return isinstance(self.group, StandIn) and self.group.written

    def touched(self) -> bool:
        """Tell whether anything is otherwise than it was put there, but for what changed in place."""
        mine, put = self.group, self.put
        same_names = len(mine) == len(put) and all(map(is_, mine, put))
        return not (same_names and all(map(is_, mine.values(), put.values()))) or self._changed_in_place()

    def scaled_value_changed(self) -> bool:
        """Tell whether the scaled hyperparameter is otherwise than `fill` put it there."""
        return not same(self.group[self._key], self.put[self._key]) or self._changed_in_place()

    def unscaled(self) -> Any:  # noqa: ANN401
        """Return the scaled hyperparameter, divided by the factor, which must not be 0."""
        value = self.group[self._key]
        return value if self.factor == 1.0 else value / self.factor

    def written(self) -> set[str]:
        """Name the other hyperparameters that are new or otherwise than `fill` put them there."""
        put = self.put
        changed = {name for name, value in self.group.items() if name not in put or put[name] is not value}
        return changed.difference(MEMBERSHIP, (self._key,))

    def _changed_in_place(self) -> bool:
        return self._version is not None and version(self.group[self._key]) != self._version


def are_same(some: Sequence[object], others: Sequence[object]) -> bool:
    """Tell whether two lists have the same objects."""
    return len(some) == len(others) and all(map(is_, some, others))


def have_same_members(one: Group, other: Group) -> bool:
    """Tell whether two groups have the same parameters."""
    return are_same(one.get("params", ()), other.get("params", ()))
