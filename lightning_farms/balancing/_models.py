"""The module that a wrapper of another package is about."""

from __future__ import annotations

from torch import nn

_INNER = {  # {class: its attribute}; by name, so that nothing is imported
    "_FabricModule": "module",
    "DistributedDataParallel": "module",
    "DataParallel": "module",
    "OptimizedModule": "_orig_mod",
    "GradSampleModule": "_module",
}
_REFUSED = {
    "FullyShardedDataParallel": "whose parameters are parts of flat ones. Use FSDP2 (`fully_shard`), or the callbacks "
    "in a Lightning Trainer",
    "DeepSpeedEngine": "which updates flattened copies of the parameters. Use DDP or FSDP2",
}


def original_module(model: nn.Module) -> nn.Module:
    """The module whose names and parameters are the user's own.

    Raises:
        TypeError: not a module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected argument `model` to be a torch.nn.Module, but got {type(model).__name__}.")
    while (name := _known(model, _INNER)) is not None:
        model = getattr(model, _INNER[name])
    return model


def check_whole(model: nn.Module) -> None:
    """Refuse a model whose parameters are not whole (a TypeError)."""
    for module in model.modules():
        if (name := _known(module, _REFUSED)) is not None:
            raise TypeError(f"Expected argument `model` to have whole parameters, but got {name}, {_REFUSED[name]}.")


def _known(module: nn.Module, names: dict[str, str]) -> str | None:
    """The first name of a class of the module that is among these."""
    return next((base.__name__ for base in type(module).__mro__ if base.__name__ in names), None)
