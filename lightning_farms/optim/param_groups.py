"""Layer-wise parameter groups for `configure_optimizers`."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch


def layerwise_param_groups(
    named_parameters: Iterable[tuple[str, torch.nn.Parameter]], layer_of: Mapping[torch.Tensor, str]
) -> list[dict[str, Any]]:
    """Sort parameters into one uniquely named group per layer, to be passed to an optimizer.

    `LayerwiseScaling` then never has to divide a group: one scaled group takes its place. Optimizers that
    keep state per group, copy hyperparameters group by group (`ZeroRedundancyOptimizer`), or know their groups by
    position need such groups.

    Args:
        named_parameters: Names and parameters, as from ``model.named_parameters()``; repeated parameters count once.
        layer_of: Layer of each parameter; parameters that are missing share the last group, named "base".

    Returns:
        Groups with the keys "params" and "name", in the order in which the layers are met. A group is named
        "base/<layer>", so that Lightning's LearningRateMonitor, which sees base rates, logs them apart from the
        effective ones. All other hyperparameters are left to the optimizer's defaults.

    Raises:
        ValueError: If there are no parameters.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.LayerNorm(2))
        >>> layer_of = {model[0].weight: "0", model[0].bias: "0"}
        >>> groups = layerwise_param_groups(model.named_parameters(), layer_of)
        >>> [(group["name"], len(group["params"])) for group in groups]
        [('base/0', 2), ('base', 2)]
        >>> optimizer = torch.optim.AdamW(groups, lr=1e-3)
    """
    members: dict[str, list[torch.nn.Parameter]] = {}
    rest: list[torch.nn.Parameter] = []
    seen: set[torch.nn.Parameter] = set()
    for _, parameter in named_parameters:
        if parameter in seen:
            continue
        seen.add(parameter)
        layer = layer_of.get(parameter)
        (rest if layer is None else members.setdefault(layer, [])).append(parameter)
    if not seen:
        raise ValueError("Expected argument `named_parameters` to be at least one parameter, but got none.")
    groups: list[dict[str, Any]] = [{"params": params, "name": f"base/{layer}"} for layer, params in members.items()]
    if rest:
        groups.append({"params": rest, "name": "base"})
    return groups
