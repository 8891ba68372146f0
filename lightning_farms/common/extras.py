"""Import of the optional packages that the project's extras install."""

from __future__ import annotations

from importlib import import_module
from types import ModuleType


def import_extra(package: str, *, extra: str, what: str) -> ModuleType:
    """Import an optional package, or raise an error that says which of the project's extras installs it."""
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f'{what} needs the package {package.partition(".")[0]}: pip install "lightning-farms[{extra}]"'
        ) from error
