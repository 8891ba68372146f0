"""A parameter group that takes another one's place while the optimizer updates."""

from collections.abc import Collection
from typing import Any

from lightning_farms.optim._own_values import are_same, positions, same, version
from lightning_farms.optim._watched_group import StandIn

Group = dict[str, Any]
MEMBERSHIP = ("params", "param_names")


class ScaledGroup:
    """Some of a parameter group's parameters, with the group's hyperparameters, one of which is scaled.

    The same dictionary is filled anew before every update; the group itself is only read. `layers` has None for
    parameters that belong to no layer. `own` holds the "params" (and "param_names") of `layers`, and values that differ
    from the group's. If `plain`, the scaled group is just a dict, which does not report what is read or written
    (``torch.compile`` of a step takes no other).
    """

    __slots__ = ("_key", "_version", "factor", "group", "layers", "members", "own", "put")

    def __init__(self, layers: list[str | None], own: Group, key: str, factor: float, *, plain: bool = False) -> None:
        self.layers = layers
        self.factor = factor
        self.members = positions(own["params"])
        self.group: Group = dict(own) if plain else StandIn(own)
        self.own = own  # values that are not replaced by the group's
        self.put: Group = {}  # values that `fill` put in
        self._key = key
        self._version: int | None = None  # version of the scaled value if it is a tensor, to detect in-place changes

    def keep(self, names: Collection[str]) -> None:
        """Keep the present values of these hyperparameters, and of no others, when the group's are copied."""
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
        """Scale a plain number anew if everything else is as `fill` left it."""
        self.put[self._key] = base if self.factor == 1.0 else base * self.factor
        dict.__setitem__(self.group, self._key, self.put[self._key])

    def read(self) -> set[str]:
        """Names of the values read from the group; for a plain one, those that are known to be read."""
        return self.group.read if isinstance(self.group, StandIn) else {"params", self._key}

    def forget_read(self) -> None:
        """Forget what was read so far."""
        if isinstance(self.group, StandIn):
            self.group.read.clear()

    def is_written(self) -> bool:
        """Whether the group reports that something was written into it; a plain one does not report."""
        return isinstance(self.group, StandIn) and self.group.written

    def touched(self) -> bool:
        """Whether anything differs from what `fill` put in; in-place changes are seen in the scaled value only."""
        mine, put = self.group, self.put
        return not (are_same(mine, put) and are_same(mine.values(), put.values())) or self._changed_in_place()

    def scaled_value(self) -> Any:  # noqa: ANN401
        """Return the scaled hyperparameter as it is now, which does not count as reading it."""
        return dict.get(self.group, self._key)

    def scaled_value_changed(self) -> bool:
        """Whether the scaled hyperparameter differs from what `fill` put in."""
        return not same(self.scaled_value(), self.put[self._key]) or self._changed_in_place()

    def unscaled(self) -> Any:  # noqa: ANN401
        """Return the scaled hyperparameter, divided by the factor, which must not be 0."""
        value = self.scaled_value()
        return value if self.factor == 1.0 else value / self.factor

    def written(self) -> set[str]:
        """Names of the other hyperparameters that are new or differ from what `fill` put in."""
        put = self.put
        changed = {name for name, value in self.group.items() if name not in put or put[name] is not value}
        return changed.difference(MEMBERSHIP, (self._key,))

    def _changed_in_place(self) -> bool:
        return self._version is not None and version(self.scaled_value()) != self._version


def have_same_members(one: Group, other: Group) -> bool:
    """Whether two groups have the same parameters."""
    return are_same(one.get("params", ()), other.get("params", ()))
