"""Which optimizers can take a multiplier per layer, and whose weight decay shrinks a weight by rate times decay."""

from collections.abc import Mapping
from typing import Any

import torch
from torch.optim import Optimizer

_NORMALISED = (
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)


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


def check_decoupled_weight_decay(optimizer: Optimizer) -> None:
    """Refuse an optimizer that adds its weight decay to a gradient which it then normalises.

    Of AdamW and other optimizers with decoupled decay, and of SGD, a step shrinks a weight by the rate times the decay
    (under momentum: in the long run), so that dividing the decay by what multiplies the rate keeps the shrinking. Of
    Adam and its kin without ``decoupled_weight_decay`` it does not. Optimizers that are not PyTorch's own are taken for
    decoupled ones.

    Args:
        optimizer: a torch optimizer.

    Raises:
        TypeError: one of PyTorch's own whose decay is part of the normalised gradient.

    Example:
        >>> import torch
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> check_decoupled_weight_decay(torch.optim.AdamW([weight]))
        >>> check_decoupled_weight_decay(torch.optim.Adam([weight], weight_decay=0.1))
        Traceback (most recent call last):
        TypeError: Expected an optimizer whose weight decay is decoupled from the gradient, but got Adam, ...

    Reference:
        Loshchilov and Hutter, Decoupled Weight Decay Regularization, ICLR 2019.
    """
    if not isinstance(optimizer, _NORMALISED):
        return
    if any(group["weight_decay"] and not group.get("decoupled_weight_decay") for group in optimizer.param_groups):
        raise TypeError(
            f"Expected an optimizer whose weight decay is decoupled from the gradient, but got"
            f" {type(optimizer).__name__}, which normalises the decay along with the gradient, so that there is nothing"
            " to compensate for. Use AdamW (or `decoupled_weight_decay=True`), or do without the compensation."
        )


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
