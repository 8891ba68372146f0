"""Which optimizers can take a multiplier per layer."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer


def check_supported(optimizer: Any, layer_of: Mapping[torch.Tensor, str] | None = None) -> None:  # noqa: ANN401
    """Refuse an optimizer whose update cannot be scaled layer by layer.

    Args:
        optimizer: What ``configure_optimizers`` returned (the torch optimizer, not Lightning's wrapper).
        layer_of: Layer of each parameter. Given, the groups of a `ZeroRedundancyOptimizer` are checked as well: it
            copies hyperparameters to its inner optimizer group by group, so that none of its groups may mix layers.

    Raises:
        TypeError: If the optimizer is LBFGS, a wrapper (DeepSpeed, Lightning, ...) without torch's step hooks, or a
            `ZeroRedundancyOptimizer` with a group that mixes layers.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> check_supported(torch.optim.SGD([weight], lr=0.1))
        >>> check_supported(torch.optim.LBFGS([weight]))
        Traceback (most recent call last):
        TypeError: Expected argument `optimizer` to be an optimizer with a learning rate per group, but got LBFGS, ...
    """
    origin = {base.__module__.partition(".")[0] for base in type(optimizer).__mro__}
    name = type(optimizer).__name__
    if "deepspeed" in origin:
        raise TypeError(
            f"Expected argument `optimizer` to be a torch optimizer that updates the model's own parameters, but got "
            f"DeepSpeed's {name}, which updates flattened copies. Use another strategy (DDP, FSDP2), or give each layer"
            " its own group with `layerwise_param_groups` and set the rates there."
        )
    if not isinstance(optimizer, Optimizer):
        raise TypeError(
            f"Expected argument `optimizer` to be a torch.optim.Optimizer with step hooks, but got {name}. If it wraps"
            " a torch optimizer, pass the inner one (`LightningOptimizer.optimizer`)."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "Expected argument `optimizer` to be an optimizer with a learning rate per group, but got LBFGS, which"
            " keeps one group and one line search for all parameters. Use SGD, Adam or another first-order optimizer."
        )
    if layer_of is not None and _shards_by_group(optimizer):
        _check_one_layer_per_group(optimizer, layer_of)


def _shards_by_group(optimizer: Optimizer) -> bool:
    return any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__)


def _check_one_layer_per_group(optimizer: Optimizer, layer_of: Mapping[torch.Tensor, str]) -> None:
    for index, group in enumerate(optimizer.param_groups):
        layers = {layer_of.get(parameter) for parameter in group["params"]}
        if len(layers) > 1:
            raise TypeError(
                f"Expected argument `optimizer` to be a ZeroRedundancyOptimizer with one layer in each group, but got"
                f" {len(layers)} layers in group {index}. Build its groups with `layerwise_param_groups`."
            )
