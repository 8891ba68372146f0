"""What can be given instead of what the parser does not know, above all the names of this package's classes."""

from __future__ import annotations

import inspect
from importlib import import_module

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from torch.nn import Module

_ROOMS = ("callbacks", "data", "models")


def import_rooms() -> None:
    """Import this package's classes, since the parser knows only imported ones by their short names."""
    for room in _ROOMS:
        import_module(f"lightning_farms.{room}")


def known_names(message: str) -> str:
    """Return a sentence on what can be given instead of a class that the parser does not know, or of a pattern."""
    if message.startswith('Parser key "freeze"'):
        return "Give patterns one by one, as in `--freeze+='network.blocks.*'`, or as a list in a file."
    if "Expected a dot import path" not in message:
        return ""
    if 'key "trainer.callbacks' in message:
        return f"Callbacks{_classes('callbacks', Callback)} Lightning's own go by their class names too."
    by_path = "Others are named by their import path"
    if 'network":' in message:  # part of a message about the model
        networks = _classes("models", Module, but=LightningModule)
        return f"Networks{networks} {by_path}, such as lightning_farms.models.resnet18."
    if 'key "model":' in message:
        return f"Models{_classes('models', LightningModule)} {by_path}."
    if 'key "data":' in message:
        return f"Data modules{_classes('data', LightningDataModule)} {by_path}."
    return ""


def _classes(room: str, kind: type, *, but: type | tuple[type, ...] = ()) -> str:
    module = import_module(f"lightning_farms.{room}")
    found = ((name, getattr(module, name)) for name in module.__all__)
    names = [name for name, value in found if _is_a(value, kind) and not issubclass(value, but)]
    return f" of this package: {', '.join(names)}."


def _is_a(value: object, kind: type) -> bool:
    return inspect.isclass(value) and issubclass(value, kind) and not inspect.isabstract(value)
