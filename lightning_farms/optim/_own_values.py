"""Dividing, copying, joining and comparing the values of a parameter group that can change in place."""

import copy
from collections import deque
from collections.abc import Collection, Iterable, Mapping, Sequence
from operator import is_
from typing import Any

import torch

Members = Mapping[torch.Tensor, int]  # the parameters of a group, and their positions in it
_PLAIN = (bool, int, float, complex, str, bytes)
_CONTAINERS = (list, dict, set, deque)


def positions(params: Iterable[torch.Tensor]) -> dict[torch.Tensor, int]:
    """Map each parameter of a group to its position."""
    return {parameter: position for position, parameter in enumerate(params)}


def can_change_in_place(value: object) -> bool:
    """Whether the value is a tensor (but not a parameter) or a container."""
    return isinstance(value, _CONTAINERS) or (
        isinstance(value, torch.Tensor) and not isinstance(value, torch.nn.Parameter)
    )


def is_container(value: object) -> bool:
    """Whether the value is a list, dict, set or deque."""
    return isinstance(value, _CONTAINERS)


def divisible(value: object, params: Members) -> bool:
    """Whether the value has entries for single parameters: a list with one for each, or a dict keyed by them."""
    if isinstance(value, list):
        return _by_position(value, params) or _of_parameters(value, params)
    if isinstance(value, dict):
        return _of_parameters(value, params) or any(divisible(entry, params) for entry in value.values())
    return False


def part(value: Any, params: Members, mine: Members, *, copies: bool) -> Any:  # noqa: ANN401
    """Return the entries of the value for `mine` of the `params`, and (copies of, if asked) what is common to all."""
    if isinstance(value, list) and _by_position(value, params):
        return _rebuilt(value, [value[params[parameter]] for parameter in mine])
    if isinstance(value, list) and _of_parameters(value, params):
        return _rebuilt(value, [parameter for parameter in value if parameter in mine])
    if isinstance(value, dict) and _of_parameters(value, params):
        return _rebuilt(value, {parameter: entry for parameter, entry in value.items() if parameter in mine})
    if isinstance(value, dict) and (copies or divisible(value, params)):
        return _rebuilt(value, {key: part(entry, params, mine, copies=copies) for key, entry in value.items()})
    return copied(value, params) if copies else value


def whole(parts: Sequence[tuple[Any, Members]], params: Members) -> Any:  # noqa: ANN401
    """Join the parts that `part` made, in the order of `params`; what is common to all is taken from the first part."""
    filled = [(value, mine) for value, mine in parts if not is_container(value) or len(value)] or parts
    first = filled[0][0]
    if all(isinstance(value, list) and _by_position(value, mine) for value, mine in filled):
        found = {p: value[position] for value, mine in filled for p, position in mine.items()}
        return _rebuilt(first, [found.get(parameter) for parameter in params])
    if all(isinstance(value, list) and _of_parameters(value, mine) for value, mine in filled):
        return _rebuilt(first, sorted((p for value, _ in filled for p in value), key=params.__getitem__))
    if all(isinstance(value, dict) and _of_parameters(value, mine) for value, mine in filled):
        found = {p: entry for value, _ in filled for p, entry in value.items()}
        return _rebuilt(first, {parameter: found[parameter] for parameter in params if parameter in found})
    if isinstance(first, dict) and divisible(first, filled[0][1]):
        keys = dict.fromkeys(key for value, _ in filled if isinstance(value, dict) for key in value)
        having = {key: [(v[key], m) for v, m in filled if isinstance(v, dict) and key in v] for key in keys}
        return _rebuilt(first, {key: whole(entries, params) for key, entries in having.items()})
    return first


def assigned(target: Any, value: Any) -> Any:  # noqa: ANN401
    """Return `target` with the contents of `value` if both are lists, or both dicts; otherwise `value`."""
    if target is value:
        return value
    if isinstance(target, list) and isinstance(value, list):
        if not are_same(target, value):
            target[:] = value
        return target
    if isinstance(target, dict) and isinstance(value, dict):
        target.update({key: assigned(target.get(key), entry) for key, entry in value.items()})
        for key in [key for key in target if key not in value]:
            del target[key]
        return target
    return value


def copied(value: Any, params: Members) -> Any:  # noqa: ANN401
    """Copy tensors and containers, all the way down, but never parameters."""
    if isinstance(value, torch.Tensor):
        if isinstance(value, torch.nn.Parameter) or value in params:
            return value
        return value.detach().clone().requires_grad_(value.requires_grad)
    if isinstance(value, dict):
        return _rebuilt(value, {key: copied(entry, params) for key, entry in value.items()})
    if isinstance(value, (list, deque)):
        return _rebuilt(value, [copied(entry, params) for entry in value])
    return copy.copy(value) if isinstance(value, set) else value


def are_same(some: Collection[object], others: Collection[object]) -> bool:
    """Whether two collections hold the same objects in the same order."""
    return len(some) == len(others) and all(map(is_, some, others))


def same(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Whether two values of a hyperparameter are the same object, or equal plain values (or tuples of them)."""
    if one is other:
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return isinstance(one, _PLAIN) and bool(one == other)


def equal(one: Any, other: Any) -> bool:  # noqa: ANN401
    """Whether two values are equal all the way down (comparing tensors waits for their device)."""
    if same(one, other):
        return True
    if type(one) is not type(other):
        return False
    if isinstance(one, torch.Tensor):
        alike = (one.shape, one.dtype, one.device) == (other.shape, other.dtype, other.device)
        return alike and bool(torch.equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(equal(entry, other[key]) for key, entry in one.items())
    if isinstance(one, (list, tuple, deque)):
        return len(one) == len(other) and all(map(equal, one, other))
    return isinstance(one, set) and one == other


class Seal:
    """Record of a value's state, which tells whether it, or anything in it, has been changed since."""

    __slots__ = ("_objects", "_versions")

    def __init__(self, value: object) -> None:
        self._objects, self._versions = _traces(value)

    def holds(self, value: object) -> bool:
        """Whether the value is the same object, with the same contents."""
        objects, versions = _traces(value)
        return versions == self._versions and are_same(objects, self._objects)


def version(value: object) -> int | None:
    """Return how often a tensor was changed in place; None for anything else."""
    return value._version if isinstance(value, torch.Tensor) and not value.is_inference() else None


def _traces(value: object) -> tuple[list[object], list[int]]:
    objects, versions = [], []
    waiting = [value]
    while waiting:
        entry = waiting.pop()
        objects.append(entry)
        number = None if isinstance(entry, torch.nn.Parameter) else version(entry)
        if number is not None:
            versions.append(number)
        elif isinstance(entry, dict):
            waiting.extend(entry.keys())
            waiting.extend(entry.values())
        elif isinstance(entry, (list, tuple, deque, set)):
            waiting.extend(entry)
    return objects, versions


def _by_position(value: list[Any], params: Members) -> bool:
    return len(value) == len(params) > 0 and all(entry is None or isinstance(entry, torch.Tensor) for entry in value)


def _of_parameters(value: Collection[Any], params: Members) -> bool:
    """Whether a list holds nothing but these parameters, or a dictionary is keyed by them."""
    return bool(value) and all(isinstance(entry, torch.Tensor) and entry in params for entry in value)


def _rebuilt(value: Any, contents: Any) -> Any:  # noqa: ANN401
    new = copy.copy(value)
    if isinstance(new, list):
        new[:] = contents
        return new
    new.clear()
    new.update(contents) if isinstance(new, dict) else new.extend(contents)
    return new
