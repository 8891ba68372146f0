"""Checks of which optimizers can take a multiplier per layer, and have decoupled weight decay."""

from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch.optim import Optimizer

from lightning_farms.optim._bookkeeping import by_identity, by_parameters_order, by_position, one_step_size
from lightning_farms.optim.unwrap import refuse_deepspeed, shards_by_group

_OVER_A_GROUP = {  # what these compute over all parameters of a group; how to recognise others like them is not known
    "AvaGrad": "the scale of its step",
    "EmoFact": "an average of the loss (moved on once a group)",
    "EmoLynx": "an average of the loss (moved on once a group)",
    "EmoNavi": "an average of the loss (moved on once a group)",
}
_NORMALISED = (
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.NAdam,
    torch.optim.RAdam,
    torch.optim.RMSprop,
)


class ScaledTwiceError(ValueError, RuntimeError):
    """Raised if two scalings are to scale the same hyperparameter of an optimizer, like an error in the arguments."""


def check_supported(optimizer: Any, layer_of: Mapping[torch.Tensor, str] | None = None, *, key: str = "lr") -> None:  # noqa: ANN401
    """Raise an error for an optimizer whose update cannot be scaled layer by layer.

    Args:
        optimizer: The optimizer that ``configure_optimizers`` returned (the torch optimizer, not Lightning's wrapper).
        layer_of: Layer of each parameter. If given, some optimizers are also checked for groups that mix layers:
            `ZeroRedundancyOptimizer`, which copies hyperparameters to its inner optimizer group by group, optimizers
            that pair their groups with a list or dict of their own by position (AdaBound), and those that compute
            something over a group (AvaGrad).
        key: The hyperparameter that is to differ from layer to layer.

    Raises:
        TypeError: If the optimizer is LBFGS; is a wrapper (DeepSpeed, Lightning, ...) without torch's step hooks; needs
            a group for each layer and has one that mixes layers; uses one value or one step size of its own for all
            groups (Prodigy, D-Adaptation); or keeps groups also outside the list ``param_groups`` (in an attribute that
            is a group, a list of groups, or another optimizer with its own list), so that groups put into
            ``param_groups`` would not reach its update.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(2))
        >>> check_supported(torch.optim.SGD([weight], lr=0.1))
        >>> check_supported(torch.optim.LBFGS([weight]))
        Traceback (most recent call last):
        TypeError: Expected argument `optimizer` to be an optimizer with a learning rate per group, but got LBFGS, ...
    """
    refuse_deepspeed(optimizer)
    name = type(optimizer).__name__
    if not (isinstance(optimizer, Optimizer) and hasattr(optimizer, "_optimizer_step_post_hooks")):
        raise TypeError(
            f"Expected argument `optimizer` to be a torch.optim.Optimizer with step hooks, but got {name}. If it is a"
            " wrapper, hand over what `updating_optimizer` returns for it."
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise TypeError(
            "Expected argument `optimizer` to be an optimizer with a learning rate per group, but got LBFGS, which"
            " keeps one group and one line search for all parameters. Use SGD, Adam or another first-order optimizer."
        )
    _check_no_groups_elsewhere(optimizer)
    if one_step_size(optimizer, key):
        raise TypeError(
            f"Expected argument `optimizer` to be an optimizer that uses each group's {key!r}, but got {name}, which"
            " takes one step size for all groups (that of the first, or one that it finds itself), however they are"
            " made. Use another optimizer, e.g. AdamW."
        )
    if layer_of is not None and shards_by_group(optimizer):
        _check_one_layer_per_group(optimizer, layer_of)
    if layer_of is not None and max(_layers_per_group(optimizer, layer_of)) > 1:
        _check_groups_may_be_divided(optimizer, layer_of)


def check_decoupled_weight_decay(optimizer: Optimizer) -> None:
    """Raise an error for an optimizer that adds its weight decay to a gradient which it then normalises.

    With AdamW and other optimizers with decoupled decay, and with SGD, a step shrinks a weight by the rate times the
    decay (with momentum: in the long run), so that dividing the decay by the rate's multiplier keeps the shrinking.
    With Adam and related optimizers without ``decoupled_weight_decay`` it does not. Optimizers that are not PyTorch's
    own are assumed to be decoupled.

    Args:
        optimizer: a torch optimizer.

    Raises:
        TypeError: it is one of PyTorch's own, and its decay is part of the normalised gradient.

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


def check_has_number(optimizer: Optimizer, key: str) -> None:
    """Raise an error for an optimizer with a group that has nothing to multiply.

    Args:
        optimizer: a torch optimizer.
        key: the hyperparameter to multiply.

    Raises:
        ValueError: a group lacks the hyperparameter, or its value is neither a number nor a tensor.

    Example:
        >>> check_has_number(torch.optim.SGD([torch.zeros(2)], lr=0.1), "lr")
    """
    for index, group in enumerate(optimizer.param_groups):
        if not isinstance(group.get(key), (Real, torch.Tensor)):  # NumPy's are Real
            raise ValueError(_no_number(optimizer, index, group, key))


def _no_number(optimizer: Optimizer, index: int, group: dict[str, Any], key: str) -> str:
    """The error message that says why a group has nothing to multiply, and what to do."""
    if key not in group:
        found = f"none, but {sorted(group.keys() - {'params'})}"
    elif group[key] is None:
        found = (
            f"None, so that the optimizer finds it itself. Give it a number (transformers' Adafactor: {key}=1e-3, "
            "relative_step=False)"
        )
    else:
        found = f"{group[key]!r}"
    return (
        f"Expected argument `optimizer` to have a number as {key!r} in every parameter group, but got "
        f"{type(optimizer).__name__}, whose group {index} has {found}."
    )


def _check_no_groups_elsewhere(optimizer: Optimizer) -> None:
    name = type(optimizer).__name__
    for attribute, value in vars(optimizer).items():
        if _holds_a_group(value, optimizer.param_groups):
            raise TypeError(
                f"Expected argument `optimizer` to be an optimizer that takes its groups from its list `param_groups`,"
                f" but got {name}, which keeps groups in `{attribute}` too. Use another optimizer."
            )
    known_in = by_identity(optimizer)
    if known_in is not None:
        raise TypeError(
            f"Expected argument `optimizer` to allow other groups in its `param_groups`, but got {name}, which"
            f" recognises its groups by identity, in its `{known_in}`. Use another optimizer."
        )


def _check_groups_may_be_divided(optimizer: Optimizer, layer_of: Mapping[torch.Tensor, str]) -> None:
    name = type(optimizer).__name__
    if attribute := by_position(optimizer):
        why = f"pairs its groups with its `{attribute}` by position"
    elif attribute := by_parameters_order(optimizer, layer_of):
        why = f"pairs its parameters with its `{attribute}` by their order"
    elif name in _OVER_A_GROUP:
        why = f"takes {_OVER_A_GROUP[name]} over a group"
    else:
        return
    raise TypeError(
        f"Expected argument `optimizer` to have one layer in each group, but got {name} with groups that mix layers,"
        f" and it {why}. Build its groups with `layerwise_param_groups`."
    )


def _holds_a_group(value: Any, groups: list[dict[str, Any]]) -> bool:  # noqa: ANN401
    held = value.param_groups if isinstance(value, Optimizer) else value
    if held is groups:
        return False
    known = {id(group) for group in groups}
    return id(held) in known or (isinstance(held, (list, tuple)) and any(id(group) in known for group in held))


def _check_one_layer_per_group(optimizer: Optimizer, layer_of: Mapping[torch.Tensor, str]) -> None:
    if getattr(optimizer, "_overlap_with_ddp", False):
        raise TypeError(
            "Expected argument `optimizer` to be a ZeroRedundancyOptimizer that updates in `step`, but got one with"
            " overlap_with_ddp=True, which updates within the backward pass. Leave the option out."
        )
    for index, number in enumerate(_layers_per_group(optimizer, layer_of)):
        if number > 1:
            raise TypeError(
                f"Expected argument `optimizer` to be a ZeroRedundancyOptimizer with one layer in each group, but got"
                f" {number} layers in group {index}. Build its groups with `layerwise_param_groups`."
            )


def _layers_per_group(optimizer: Optimizer, layer_of: Mapping[torch.Tensor, str]) -> list[int]:
    return [len({layer_of.get(parameter) for parameter in group["params"]}) for group in optimizer.param_groups]
