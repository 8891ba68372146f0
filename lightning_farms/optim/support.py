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
        TypeError: If the optimizer is LBFGS, a wrapper (DeepSpeed, Lightning, ...) without torch's step hooks, a
            `ZeroRedundancyOptimizer` with a group that mixes layers, or one that keeps its groups elsewhere than in
            the list ``param_groups`` too (an attribute that is a group, a list of them, or another optimizer with a
            list of its own), so that groups put into that list would not reach its update.

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
    if not (isinstance(optimizer, Optimizer) and hasattr(optimizer, "_optimizer_step_post_hooks")):
        raise TypeError(
            f"Expected argument `optimizer` to be a torch.optim.Optimizer with step hooks, but got {name}. If it wraps"
            " a torch optimizer, pass the inner one (`LightningOptimizer.optimizer`)."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "Expected argument `optimizer` to be an optimizer with a learning rate per group, but got LBFGS, which"
            " keeps one group and one line search for all parameters. Use SGD, Adam or another first-order optimizer."
        )
    for attribute, value in vars(optimizer).items():
        if _holds_a_group(value, optimizer.param_groups):
            raise TypeError(
                f"Expected argument `optimizer` to be an optimizer that takes its groups from its list `param_groups`,"
                f" but got {name}, which keeps groups in `{attribute}` too. If that is a torch optimizer, pass it"
                " instead."
            )
    if layer_of is not None and _shards_by_group(optimizer):
        _check_one_layer_per_group(optimizer, layer_of)


def _holds_a_group(value: Any, groups: list[dict[str, Any]]) -> bool:  # noqa: ANN401
    held = value.param_groups if isinstance(value, Optimizer) else value
    if held is groups:
        return False
    known = {id(group) for group in groups}
    return id(held) in known or (isinstance(held, (list, tuple)) and any(id(group) in known for group in held))


def _shards_by_group(optimizer: Optimizer) -> bool:
    return any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__)


def _check_one_layer_per_group(optimizer: Optimizer, layer_of: Mapping[torch.Tensor, str]) -> None:
    if getattr(optimizer, "_overlap_with_ddp", False):
        raise TypeError(
            "Expected argument `optimizer` to be a ZeroRedundancyOptimizer that updates in `step`, but got one with"
            " overlap_with_ddp=True, which updates within the backward pass. Leave the option out."
        )
    for index, group in enumerate(optimizer.param_groups):
        layers = {layer_of.get(parameter) for parameter in group["params"]}
        if len(layers) > 1:
            raise TypeError(
                f"Expected argument `optimizer` to be a ZeroRedundancyOptimizer with one layer in each group, but got"
                f" {len(layers)} layers in group {index}. Build its groups with `layerwise_param_groups`."
            )
