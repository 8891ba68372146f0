"""Messages about arguments of the classes that the command line builds, in the names of its options."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from inspect import isclass, signature
from traceback import walk_tb

from jsonargparse import Namespace

from lightning_farms.cli._shell import message_of, renamed
from lightning_farms.cli.train._classes import class_of


def option_keys(config: object, plain: Mapping[type, str]) -> dict[type, str]:
    """Return {class: key of its options} for the classes named in a configuration, and those that need not be named."""
    keys: dict[type, str | None] = dict(plain)
    for kind, key in _named_classes(config, ""):
        keys[kind] = key if keys.get(kind, key) == key else None  # None: built at several places
    return {kind: key for kind, key in keys.items() if key}


def _named_classes(part: object, key: str) -> Iterator[tuple[type, str]]:
    if isinstance(part, list):
        for each in part:
            yield from _named_classes(each, key)
    elif isinstance(part, Namespace):
        named = class_of(part.class_path) if isinstance(part.get("class_path"), str) else None
        if isclass(named):
            yield named, key
        for name, value in vars(part).items():
            yield from _named_classes(value, key if name == "init_args" else f"{key}.{name}".lstrip("."))


def cause_in(error: BaseException, keys: Mapping[type, str]) -> BaseException:
    """Return what one of the classes raised, if the parser has put a message about all allowed types around it."""
    inner: BaseException | None = error
    while inner is not None:
        if any(True for _ in _objects(inner, keys)):
            return inner
        inner = inner.__cause__
    return error


def with_option_names(error: BaseException, keys: Mapping[type, str], built: tuple[object, ...] | None) -> str:
    """Return an error's message; arguments of the innermost object that raised it get the names of their options.

    `built` are the objects that the command line has built; None: it has not yet.
    """
    text = message_of(error)
    for each in _objects(error, keys):
        if built is None or any(each is one for one in built):
            names = signature(type(each)).parameters
            return renamed(text, {name: f"--{keys[type(each)]}.{name}" for name in names})
    return text


def _objects(error: BaseException, keys: Mapping[type, str]) -> Iterator[object]:
    """Yield the objects of these classes in whose methods an error was raised, from the innermost one on."""
    owners = [frame.f_locals.get("self") for frame, _ in walk_tb(error.__traceback__)]
    yield from (owner for owner in reversed(owners) if type(owner) in keys)
