"""Proof from the first scaled steps that an update uses the values that it was given."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch.nn.parameter import is_lazy

from lightning_farms.optim._own_values import Seal, are_same, equal, is_container, version
from lightning_farms.optim._scaled_group import MEMBERSHIP, Group, ScaledGroup

_SEVERAL = 3  # steps after which a value that was not read counts as never read
_MANY = 8  # the same if there is no sign that these steps updated anything
RARELY = 50
"""Least number of steps between a proof and the next one."""

_ELSEWHERE = (
    "the weights change outside of `step`, for example in the backward pass. Use an optimizer that updates them in"
    " `step`"
)
_REMEDY = "Give the optimizer one group for each layer (`layerwise_param_groups`), or use another one"


class _Begin(NamedTuple):
    """A parameter at the beginning of a step: its version, and the steps that the optimizer has counted for it."""

    version: int | None
    steps: int | None


class _Wide(NamedTuple):
    """An entry of the optimizer's state for all parameters: what it is, and its number if it is a counter."""

    seal: Seal
    number: int | None


class Proof:
    """Watches the scaled groups until a step has read the parameters and the scaled value of each of them."""

    def __init__(self, key: str, *, copied: bool = False) -> None:
        self.proved = False
        self._copied = copied  # whether values are copied to the groups of an inner optimizer, which updates
        self.running = False  # whether the present step is watched
        self._key = key
        self._usual: int | None = None  # by how much a step without scaled groups advances a parameter's own counter
        self._tries = 0  # steps in which this was looked for
        self._watched: list[ScaledGroup] = []
        self._read: dict[int, set[str]] = {}  # names that were read in each of these groups, in all steps
        self._steps = self._updates = 0  # steps that read parameters; those that are known to have changed some
        self._begin: dict[torch.Tensor, _Begin] = {}
        self._sums: dict[torch.Tensor, torch.Tensor] = {}  # sums of the entries of these parameters
        self._trained: set[int] = set()  # positions of scaled groups with a gradient
        self._closure_moved = False  # parameters, in the present step
        self._by_closure = 0  # steps whose closure moved parameters and left no gradient
        self._others: list[tuple[torch.Tensor, Any]] = []  # a parameter with a gradient of each other group, its value
        self._shared: dict[str, tuple[Any, Seal]] = {}  # containers that several groups share
        self._wide: dict[object, _Wide] = {}  # entries of the optimizer's state for all parameters
        self._groups = (0, 0)  # numbers of groups in force and at rest
        self._unread = _Unread()
        self._age = 0  # scaled steps since the proof

    def watch(self, scaled: list[ScaledGroup], in_force: Sequence[Group], own: Sequence[Group], state: Any) -> None:  # noqa: ANN401
        """Begin to watch, at the beginning of an update or after its closure."""
        if scaled is not self._watched and not are_same(scaled, self._watched):
            self.proved, self._trained = False, set()
            self._read = {number: set() for number in range(len(scaled))}
            self._steps = self._updates = self._by_closure = 0
            self._unread = _Unread()
            self._watched = scaled  # last, so that all is done again after an interruption
        self._age += 1
        if self.proved or (not scaled and (self._usual is not None or self._tries >= _SEVERAL)):
            return
        self._closure_moved = self.running and any(map(self._moved, self._begin))
        if not self.running:
            self._begin = {p: _Begin(version(p), _counter(state, p)) for p in map(_sample, in_force) if p is not None}
            self._sums = {p: _sum(p) for p in self._begin if scaled and not hasattr(p, "to_local")}
            self._unread.begin()
            self._shared = _shared_containers(own) if scaled else {}
            self._groups = len(in_force), len(own)
            self._wide = _of_all_parameters(state) if len(in_force) > len(own) else {}
            self.running = True
        self._trained = {number for number, one in enumerate(scaled) if _has_gradient(one.members)}
        mine = {id(one.group) for one in scaled}
        others = [(_sample(group), group[self._key]) for group in in_force if id(group) not in mine]
        self._others = [(p, value) for p, value in others if p is not None and p.grad is not None]

    def verdict(self, state: Any) -> str | None:  # noqa: ANN401
        """Judge a finished step: return what is wrong, if anything."""
        if not self.running:
            return None
        self.running = False
        counted = [(_counter(state, p), begin.steps or 0) for p, begin in self._begin.items()]
        advance = max((after - before for after, before in counted if after is not None), default=None)
        if not self._watched:
            self._tries += 1
            self._usual = advance
            return None
        read = [set(one.read()) for one in self._watched]  # in this step
        for number, one in enumerate(self._watched):
            self._read[number] |= read[number]
            one.forget_read()
        if not any("params" in names for names in self._read.values()):
            return None if self._copied else self._unread.verdict(any(self._moved(p) for p in self._begin), self._begin)
        if not any("params" in names for names in read):
            return None  # nothing was updated
        self._by_closure += self._closure_moved and not self._trained
        if self._by_closure >= _SEVERAL:
            return _ELSEWHERE
        self._steps += 1
        self._updates += any(self._moved(parameter) for parameter in self._begin)
        self._age = 0
        needed = {"params", self._key}
        self.proved = all(self._read[number] >= needed for number in self._trained) and bool(self._trained)
        return self._standing_still(read) or self._twice(advance) or self._leaking(state) or self._one_value()

    def overwritten(self) -> str | None:
        """At an update's end, what is wrong if it has set different values to one, as a schedule within `step` does.

        The groups then count as not scaled, since the value is the update's own.
        """
        scaled = [self._watched[number] for number in self._trained] if self.running else []
        values = [one.scaled_value() for one in scaled]
        changed = any(one.scaled_value_changed() for one in scaled) and len({one.factor for one in scaled}) > 1
        if not (changed and all(equal(value, values[0]) for value in values) and bool(values[0])):
            return None
        for one in self._watched:
            one.factor = 1.0
        return f"the update sets {self._key!r} of all groups to one value. Set it outside of `step`, by a scheduler"

    def again(self) -> None:
        """Watch again because the values have changed: an optimizer may have kept those of its first steps."""
        if self.proved and self._age >= RARELY:
            self._watched = []  # as if none had been watched

    def _moved(self, parameter: torch.Tensor) -> bool:
        """Whether the parameter was changed in the step, even through its ``data``, which has no version."""
        if version(parameter) != self._begin[parameter].version:
            return True
        return parameter in self._sums and bool(_sum(parameter) != self._sums[parameter])

    def _standing_still(self, read: Sequence[set[str]]) -> str | None:
        updated = {number for number in self._trained if {"params", self._key} <= read[number]}
        passed_over = any("params" not in self._read[number] for number in self._trained)
        samples = [_sample(self._watched[number].group) for number in updated]
        if updated and all(p is not None and p in self._begin and self._moved(p) for p in samples):
            passed_over |= any(
                p in self._begin and not self._moved(p) and bool(value != 0) and _is_pulled(p)
                for p, value in self._others
            )
        if not (updated and passed_over):
            return None
        return (
            "some parameters do not change: the update leaves out some of the groups, perhaps because it pairs them"
            f" with a list of its own. {_REMEDY}"
        )

    def _twice(self, advance: int | None) -> str | None:
        in_force, own = self._groups
        if advance is None or advance <= (self._usual or 1):
            return None
        if self._usual is None and (advance != in_force or in_force == own):
            return None  # this may well be how the optimizer works
        return (
            f"parameters were updated {advance} times in one step, in place of {self._usual or 1}: the update goes over"
            f" all of them once for each group. {_REMEDY}"
        )

    def _leaking(self, state: Any) -> str | None:  # noqa: ANN401
        for name, (value, seal) in self._shared.items():
            if not seal.holds(value):
                return (
                    f"groups share one {type(value).__name__} as {name!r}, which the update changes, so that what it"
                    f" computes for one group reaches others. Give each group its own, e.g."
                    f" `group[{name!r}] = copy.deepcopy(group[{name!r}])`"
                )
        in_force, own = self._groups
        if in_force > own:
            for key, (_, count) in _of_all_parameters(state).items():
                left = self._wide.get(key)
                once = count is not None and count == 1 + ((left.number or 0) if left else 0)
                if not once and not (left and left.seal.holds(state[key])):
                    return (
                        f"the update changes a value that the optimizer keeps for all parameters ({key!r}), perhaps"
                        f" once for each group. {_REMEDY}"
                    )
        return None

    def _one_value(self) -> str | None:
        having = {number for number in self._trained if self._key in self._read[number]}
        if having == self._trained or self._steps < _SEVERAL:
            return None
        if having:
            return (
                f"the update reads {self._key!r} from some of the groups only, and uses one value for all. Use an"
                f" optimizer that uses each group's own"
            )
        if self._updates < _SEVERAL and self._steps < _MANY:
            return None
        return (
            f"the update never reads {self._key!r} from its groups: it uses a copy of its own, or none. Use an"
            f" optimizer that uses each group's own"
        )


class _Unread:
    """Finds out who updates the parameters, if anyone does, in steps that read those of none of the groups in force."""

    def __init__(self) -> None:
        self._inside = self._outside = 0  # how often weights changed within such a step; between two of them
        self._left: dict[torch.Tensor, tuple[int | None, float]] = {}  # traces of parameters after the last such step

    def begin(self) -> None:
        """Check whether parameters have changed since the last step."""
        self._outside += any(_trace(p) != left for p, left in self._left.items())

    def verdict(self, moved: bool, sample: Iterable[torch.Tensor]) -> str | None:
        """Judge a finished step of this kind, in which weights have moved or not."""
        self._inside += moved
        self._left = {p: _trace(p) for p in sample if not hasattr(p, "to_local")}
        if self._inside >= _SEVERAL:
            return f"the update does not take the parameters from its `param_groups`. {_REMEDY}"
        if self._outside >= _MANY:
            return _ELSEWHERE
        return None


def _sum(parameter: torch.Tensor) -> torch.Tensor:
    """The sum, with a number for NaN, which would not be equal to itself."""
    return parameter.detach().sum().nan_to_num()


def _trace(parameter: torch.Tensor) -> tuple[int | None, float]:
    """Values that change when the parameter does (waits for its device)."""
    return version(parameter), float(_sum(parameter.double()))


def _sample(group: Group) -> torch.Tensor | None:
    """Return the group's first parameter with a gradient, or otherwise the first with values that requires one."""
    params: list[torch.Tensor] = group["params"]
    trained = [p for p in params if p.requires_grad and not (is_lazy(p) or p.is_meta)]
    return next((p for p in trained if p.grad is not None), trained[0] if trained else None)


def _is_pulled(parameter: torch.Tensor) -> bool:
    """Whether the gradient is not all zero, as it is behind a gate that is closed at first (waits for its device)."""
    return parameter.grad is None or bool(
        parameter.grad.to_dense().any() if parameter.grad.is_sparse else parameter.grad.any()
    )


def _has_gradient(params: Iterable[torch.Tensor]) -> bool:
    return any(parameter.grad is not None for parameter in params)


def _counter(state: Any, parameter: torch.Tensor) -> int | None:  # noqa: ANN401
    """Return how many steps the optimizer's state has counted for the parameter (may wait for a device)."""
    entry = state.get(parameter) if isinstance(state, Mapping) else None
    return _whole_number(entry.get("step") if isinstance(entry, Mapping) else None)


def _whole_number(value: object) -> int | None:
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        value = value.item()
    return int(value) if isinstance(value, (int, float)) and value == int(value) else None


def _of_all_parameters(state: Any) -> dict[object, _Wide]:  # noqa: ANN401
    """Return the state's entries that belong to no parameter, with their number if they are counters."""
    entries = state.items() if isinstance(state, Mapping) else ()
    shared = {key: value for key, value in entries if not isinstance(key, torch.Tensor)}
    return {key: _Wide(Seal(value), _whole_number(value)) for key, value in shared.items()}


def _shared_containers(groups: Sequence[Group]) -> dict[str, tuple[Any, Seal]]:
    found: dict[str, tuple[Any, Seal]] = {}
    owners: dict[int, int] = {}
    for group in groups:
        for name, value in group.items():
            if is_container(value) and name not in MEMBERSHIP:
                owners[id(value)] = owners.get(id(value), 0) + 1
                if owners[id(value)] > 1:
                    found[name] = value, Seal(value)
    return found
