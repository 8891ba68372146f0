"""Lightning under its two names: the one place that knows both.

``lightning.pytorch`` and ``pytorch_lightning`` are the same program as two packages: a class of the one is none of the
other. What a Trainer, its loggers and its strategy are is asked here; none of the two is imported for the question.
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
    """The class of this name in each of the two packages that has been imported: there are no instances of others.

    Args:
        name: module and class as they stand in both packages.

    Returns:
        The classes, for ``isinstance``; none where no package has been imported, or an old one has no such class.

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
    """What to raise on an unsuitable Trainer: code written for either package catches it as its own.

    Args:
        message: what is wrong, and the remedy.

    Returns:
        A MisconfigurationException of ``lightning``, and of ``pytorch_lightning`` too where that has been imported.

    Example:
        >>> isinstance(misconfiguration("no"), MisconfigurationException)
        True
    """
    return _of_all(kinds("utilities.exceptions.MisconfigurationException"))(message)


def versions() -> dict[str, str]:
    """Version of each of the two packages that has been imported, by the package's name.

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
    """For pickle, which finds no class made here by its name."""
    return misconfiguration, error.args
