"""Lightning under its two package names; the only place that knows both.

``lightning.pytorch`` and ``pytorch_lightning`` are the same program in two packages, but a class of one is not a class
of the other. The kinds of a Trainer, its loggers and its strategy are checked here, without importing either package.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any, Literal, TypeAlias

from lightning.fabric.utilities.exceptions import MisconfigurationException

_PACKAGES = ("lightning.pytorch", "pytorch_lightning")

Kind: TypeAlias = Literal[
    "callbacks.ModelPruning",
    "loggers.MLFlowLogger",
    "loggers.TensorBoardLogger",
    "loggers.WandbLogger",
    "strategies.DeepSpeedStrategy",
    "strategies.FSDPStrategy",
    "trainer.Trainer",
    "utilities.exceptions.MisconfigurationException",
]


def kinds(name: Kind) -> tuple[type, ...]:
    """The class of this name in each of the two packages that has been imported (others have no instances).

    Args:
        name: module and class, as named in both packages.

    Returns:
        The classes, for ``isinstance``; none if no package has been imported, or an old one has no such class.

    Example:
        >>> from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
        >>> isinstance(FSDPStrategy(), kinds("strategies.FSDPStrategy"))
        True
        >>> isinstance(DDPStrategy(), kinds("strategies.FSDPStrategy"))
        False
    """
    module, _, kind = name.rpartition(".")
    loaded = [sys.modules.get(f"{package}.{module}") for package in _PACKAGES]
    return tuple(getattr(where, kind) for where in loaded if hasattr(where, kind))


def misconfiguration(message: str) -> MisconfigurationException:
    """Make the exception for an unsuitable Trainer, which code written for either package catches as its own.

    Args:
        message: what is wrong, and the remedy.

    Returns:
        A MisconfigurationException of ``lightning``, and also of ``pytorch_lightning`` if that has been imported.

    Example:
        >>> isinstance(misconfiguration("no"), MisconfigurationException)
        True
    """
    return _of_all(kinds("utilities.exceptions.MisconfigurationException"))(message)


def versions() -> dict[str, str]:
    """Versions of those of the two packages that have been imported, by package name.

    Example:
        >>> "lightning" in versions()
        True
    """
    found = {name: sys.modules.get(name) for name in ("lightning", "pytorch_lightning")}
    return {name: str(package.__version__) for name, package in found.items() if package is not None}


@cache
def _of_all(classes: tuple[type, ...]) -> type[MisconfigurationException]:
    bases = tuple(dict.fromkeys((MisconfigurationException, *classes)))
    return type("MisconfigurationException", bases, {"__module__": __name__, "__reduce__": _made_again})


def _made_again(error: MisconfigurationException) -> tuple[Any, ...]:
    """Let pickle rebuild the error, since it cannot find a class made here by its name."""
    return misconfiguration, error.args
