"""Unwrapping of models, and checks of the models and optimizers that are given."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import nn
from torch.optim import Optimizer

from lightning_farms.common.parameters import identities

_INNER = {  # {class: attribute that holds the module}; by name, so that nothing is imported
    "_FabricModule": "module",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "GradSampleModule": "_module",
}
_REFUSED = {"DeepSpeedEngine": "which updates flattened copies of the parameters. Use DDP or FSDP2"}


def check_kinds(**arguments: tuple[object, type]) -> None:
    """Raise a TypeError for options that are not of the required kind."""
    for name, (value, kind) in arguments.items():
        if not isinstance(value, kind):
            raise TypeError(f"Expected argument `{name}` to be {kind.__name__}(...), but got {value!r}.")


def original_module(model: nn.Module) -> nn.Module:
    """Unwrap a model to the module whose names and parameters are the user's own.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected argument `model` to be a torch.nn.Module, but got {type(model).__name__}.")
    while (name := _known(model, _INNER)) is not None:
        model = getattr(model, _INNER[name])
    return model


def check_whole(model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    """Raise a TypeError if a model's parameters are not whole, a ValueError if the optimizers train none of them."""
    for module in model.modules():
        if (name := _known(module, _REFUSED)) is not None:
            raise TypeError(f"Expected argument `model` to have whole parameters, but got {name}, {_REFUSED[name]}.")
    held = {p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]}
    if held.isdisjoint(model.parameters()):
        raise ValueError(
            "Expected argument `optimizer` to train parameters of `model`, but got "
            f"{' and '.join(type(optimizer).__name__ for optimizer in optimizers)} with none of them. Make the "
            "optimizer after the model is in its final form."
        )


def all_of(optimizer: Any) -> list[Optimizer]:  # noqa: ANN401
    """Return one or several optimizers as a list; wrappers of other packages are not Optimizers, but have groups."""
    several = list(optimizer) if isinstance(optimizer, (list, tuple)) else [optimizer]
    if not several or not all(hasattr(each, "param_groups") for each in several):
        raise TypeError(f"Expected argument `optimizer` to be an optimizer, or several, but got {optimizer!r}.")
    return several


def held_by(optimizers: Sequence[Optimizer]) -> list[tuple[int, bool]]:
    """Identities of the optimizers and their parameters; the model may show gathered weights instead (FSDP2)."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    parameters = identities(parameter for group in groups for parameter in group["params"])
    return [(id(optimizer), False) for optimizer in optimizers] + parameters


def shown_by(model: nn.Module) -> list[tuple[str, int]]:
    """Which parameter stands where in the model; nothing where others take their places for a while (FSDP2)."""
    if any(hasattr(module, "unshard") for module in model.modules()):
        return []
    return [(name, id(parameter)) for name, parameter in model.named_parameters()]


def _known(module: nn.Module, names: dict[str, str]) -> str | None:
    """The first class name of the module that is among the given names."""
    return next((base.__name__ for base in type(module).__mro__ if base.__name__ in names), None)
