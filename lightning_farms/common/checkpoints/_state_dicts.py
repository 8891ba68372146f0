"""Choice among the state dicts in a file."""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple, TypeGuard, cast

from lightning_farms.common.checkpoints._inert_pickle import PickleError, StandIn
from lightning_farms.common.checkpoints.pickled_tensor import PickledTensor

STATE_DICT_KEYS = ("state_dict", "model_state_dict", "model", "module")
"""Keys under which training programs put the state dict beside optimizer, epoch, ...; the first one found is taken."""

MODULES_EXTRAS = "_extra_state|_metadata"
"""Pattern of the entries besides tensors that modules put into their state dicts."""

_DEEPEST = 32
_MOST_CONTAINERS = 100_000
_NO_WEIGHTS = re.compile(
    r"(?i).*(optim|(?<![a-z])((lr)?sched|(amp|grad|loss)?scaler|rng(?![a-z])|random_?(.*_)?states?(?![a-z])"
    rf"|hyper_?param)).*|random|loops|callbacks|args|{MODULES_EXTRAS}"
)
_NO_WEIGHTS_INSIDE = re.compile(
    rf"(optim(izers?)?|(lr_)?schedulers?|(grad_)?scaler|rng)(_states?)?(_dicts?)?|loops|callbacks|{MODULES_EXTRAS}"
)  # inside a state dict with a usual name, where parts of the model may have any name
_SHOWN = 12
_LONGEST_NAME = 1000  # characters of a key, and of a path that is shown
_MOST_TEXT = 2**26  # characters of all names; a path is part of every name below it
Tensors = dict[str, PickledTensor]


class StateDicts(NamedTuple):
    """The chosen tensors, and the other state dicts in the file.

    Attributes:
        tensors: the tensors by name.
        taken: path of the state dict in the file, its keys joined by dots; empty if it is the file itself.
        others: numbers of tensors, and of their entries, in the other state dicts, by their paths.
        buffers: names of tensors that are known to be buffers.
        objects: the objects in which the tensors, and those of the other state dicts, were found.
    """

    tensors: Tensors
    taken: str
    others: dict[str, tuple[int, int]]
    buffers: frozenset[str]
    objects: frozenset[StandIn]


class AmbiguousStateDict(ValueError):
    """Raised if a file holds several state dicts without a usual name, or lacks the one that was asked for.

    Args:
        path: path of the file.
        key: the key that was asked for; None if there was none.
        found: numbers of tensors, and of their entries, under each path.
    """

    def __init__(self, path: str, key: str | None, found: Mapping[str, tuple[int, int]]) -> None:
        self.path, self.key, self.found = path, key, dict(found)
        super().__init__(path, key, self.found)

    def __str__(self) -> str:
        listed = listed_state_dicts(self.found) or "none"
        if self.key is None:
            return f"Expected argument `key` to say which state dict of {self.path!r} is meant; there are {listed}."
        return (
            f"Expected argument `key` to be one of the state dicts in {self.path!r}, but got {self.key!r}; there are "
            f"{listed}."
        )


def listed_state_dicts(found: Mapping[str, tuple[int, int]]) -> str:
    """List paths with their sizes in words."""
    texts = [
        f"{path[:_LONGEST_NAME] or '(top level)'} ({tensors} tensors, {numbers:,} numbers)"
        for path, (tensors, numbers) in list(found.items())[:_SHOWN]
    ]
    return ", ".join(texts) + (", ..." if len(found) > _SHOWN else "")


def choose_state_dict(content: object, key: str | None, path: str) -> StateDicts:
    """Choose the state dict that is asked for, or otherwise the main one of a file.

    The main one is the first of STATE_DICT_KEYS with tensors, or otherwise the only state dict. The states of
    optimizers, schedulers and random number generators do not count.

    Raises:
        AmbiguousStateDict: there are several without a usual name, or none under ``key``.
    """
    found = {path: held for path, held in _held(content) if held.tensors}
    sizes = {path: _size(held.tensors) for path, held in found.items()}
    weights = {path: size for path, size in sizes.items() if not _is_of_training(path.split("."))}
    if key is not None:
        tensors = _below(found, key)
        if not tensors.tensors:
            raise AmbiguousStateDict(path, key, sizes)
        return _chosen(tensors, key, weights, found)
    root = _root({name: found[name] for name in weights})
    hidden = {name: size for name, size in sizes.items() if _has_matrices(found[name])}  # such as a callback's averages
    if root is None or (hidden and not weights):
        raise AmbiguousStateDict(path, None, weights or hidden)
    return _chosen(_below({name: found[name] for name in weights}, root), root, weights, found)


def _is_of_training(path: Sequence[str]) -> bool:
    """Whether a path leads not to the model but to other states of the training program."""
    inside = next((place for place, key in enumerate(path) if key in STATE_DICT_KEYS), len(path)) + 1
    return any(map(_NO_WEIGHTS.fullmatch, path[:inside])) or any(map(_NO_WEIGHTS_INSIDE.fullmatch, path[inside:]))


class _Held(NamedTuple):
    tensors: Tensors
    buffers: frozenset[str] = frozenset()
    objects: frozenset[StandIn] = frozenset()  # that hold them


def _chosen(held: _Held, taken: str, weights: Mapping[str, tuple[int, int]], found: Mapping[str, _Held]) -> StateDicts:
    inside = {path for path in weights if path == taken or (path.startswith(f"{taken}.") and taken)}
    direct = taken in weights
    others = {path: size for path, size in weights.items() if path != taken and (direct or path not in inside)}
    objects = held.objects.union(*(found[path].objects for path in weights))
    return StateDicts(held.tensors, taken, others, held.buffers, objects)


def _size(tensors: Tensors) -> tuple[int, int]:
    return len(tensors), sum(math.prod(tensor.shape) for tensor in tensors.values())


def _root(found: Mapping[str, _Held]) -> str | None:
    """Path of the main state dict; empty if it is the file itself or there is none, None if it is not clear."""
    for key in STATE_DICT_KEYS:
        if any(path == key or path.startswith(f"{key}.") for path in found):
            return key
    with_matrices = [path for path, held in found.items() if _has_matrices(held)]
    candidates = with_matrices or list(found)
    tops = list(dict.fromkeys(path.partition(".")[0] for path in candidates))
    if len(tops) != 1:
        return None if tops else ""
    below = [f"{tops[0]}.{key}" for key in STATE_DICT_KEYS]  # such as {"app": {"model": ..., "optim": ...}}
    return next((path for path in below if any(f"{each}.".startswith(f"{path}.") for each in found)), tops[0])


def _has_matrices(held: _Held) -> bool:
    return any(len(tensor.shape) > 1 for tensor in held.tensors.values())


def _below(found: Mapping[str, _Held], root: str) -> _Held:
    """The tensors at a path, or otherwise those of all paths below it, with these paths as part of their names."""
    if root in found:
        return found[root]
    start = f"{root}." if root else ""
    tensors: Tensors = {}
    buffers: set[str] = set()
    objects: set[StandIn] = set()
    text = _Text()
    for path, held in found.items():
        if path.startswith(start):
            rest = path.removeprefix(start)
            text.add(len(rest) * len(held.tensors))
            tensors.update({f"{rest}.{name}": tensor for name, tensor in held.tensors.items()})
            buffers.update(f"{rest}.{name}" for name in held.buffers)
            objects |= held.objects
    return _Held(tensors, frozenset(buffers), frozenset(objects))


def _held(content: object) -> Iterator[tuple[str, _Held]]:
    """Paths of all containers, with the tensors that each holds directly."""
    waiting: deque[tuple[tuple[str, ...], frozenset[StandIn], object]] = deque([((), frozenset(), content)])
    text = _Text()
    for _ in range(_MOST_CONTAINERS):  # a pickle may hold one list in another many times over
        if not waiting:
            return
        path, holders, value = waiting.popleft()
        if is_module(value):
            held = _of_module(value)
            yield ".".join(path), held._replace(objects=held.objects | holders)
            continue
        entries = entries_of(value) or (_listed(value) if path else {})
        if not entries or len(path) > _DEEPEST:
            continue
        if is_optimizer(entries):
            continue
        own = {_name(name): tensor for name, entry in entries.items() if (tensor := _tensor_in(str(name), entry))}
        text.add(sum(map(len, path)))
        holders |= {value} if isinstance(value, StandIn) else frozenset()
        yield ".".join(path), _Held(own, objects=holders)
        waiting += [((*path, _name(name)), holders, child) for name, child in entries.items() if _may_hold(child)]


class _Text:
    """Limits the number of characters in names, as a small file can ask for any number of long names."""

    def __init__(self) -> None:
        self._left = _MOST_TEXT

    def add(self, characters: int) -> None:
        self._left -= characters
        if self._left < 0:
            raise PickleError(f"its names have more than {_MOST_TEXT} characters")


def _name(key: object) -> str:
    """Convert a key to printable text."""
    text = str(key)
    if len(text) > _LONGEST_NAME:
        raise PickleError(f"it has a name of {len(text)} characters")
    return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")


def _may_hold(value: object) -> bool:
    return isinstance(value, (dict, list, tuple, StandIn))


def is_optimizer(entries: Mapping[Any, Any]) -> bool:
    """Whether a dictionary is the state of an optimizer, whose tensors are not weights."""
    return "param_groups" in entries and isinstance(entries.get("state"), dict)


def _tensor_in(name: str, entry: object) -> PickledTensor | None:
    """The entry if it is a tensor, or the weight that a quantised PyTorch module packs together with its bias."""
    if name.rpartition(".")[2] == "_packed_params" and isinstance(entry, tuple) and entry:
        entry = entry[0]
    return entry if isinstance(entry, PickledTensor) else None


def entries_of(value: object) -> Mapping[Any, Any]:
    """The entries of a container: a dictionary, a list, or an object of an unknown class."""
    if isinstance(value, dict):
        return value
    if isinstance(value, (list, tuple)):
        return dict(enumerate(value)) if any(isinstance(item, (dict, StandIn)) for item in value) else {}
    if isinstance(value, StandIn):
        return value.entries or (value.state if isinstance(value.state, dict) else {})
    return {}


def _listed(value: object) -> Mapping[Any, Any]:
    """The tensors of a list by their positions, as torch_ema stores its averages."""
    tensors = isinstance(value, list) and any(isinstance(item, PickledTensor) for item in value)
    return dict(enumerate(value)) if tensors and isinstance(value, list) else {}


def is_module(value: object) -> TypeGuard[StandIn]:
    """Whether a value is a pickled ``nn.Module``."""
    state = value.state if isinstance(value, StandIn) else None
    return isinstance(state, dict) and isinstance(state.get("_parameters"), dict) and "_modules" in state


def _of_module(module: object) -> _Held:
    """The state dict of a module that was pickled as a whole."""
    tensors: Tensors = {}
    buffers: set[str] = set()
    waiting: deque[tuple[str, object]] = deque([("", module)])
    seen: set[StandIn] = set()
    text = _Text()
    while waiting:
        prefix, part = waiting.popleft()
        if not is_module(part) or part in seen:
            continue
        seen.add(part)
        state = cast("dict[str, object]", part.state)
        for kind in ("_parameters", "_buffers"):
            of_kind = entries_of(state.get(kind)).items()
            held = {f"{prefix}{_name(n)}": t for n, t in of_kind if isinstance(t, PickledTensor)}
            text.add(len(prefix) * len(held))
            tensors.update(held)
            buffers.update(held if kind == "_buffers" else ())
        children = [(f"{prefix}{_name(name)}.", child) for name, child in entries_of(state["_modules"]).items()]
        text.add(sum(len(name) for name, _ in children))
        waiting += children
    return _Held(tensors, frozenset(buffers), frozenset(seen))
