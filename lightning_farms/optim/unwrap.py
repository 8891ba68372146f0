"""Finding the optimizer inside a wrapper that updates the parameters."""

from typing import Any

from torch.optim import Optimizer

from lightning_farms.optim._code_of import holds_text, mentions, methods_code

_DELEGATING = {  # wrappers of trainers, and the attribute with the optimizer that they step
    "LightningOptimizer": "_optimizer",
    "_FabricOptimizer": "_optimizer",
    "AcceleratedOptimizer": "optimizer",
}
_TRAINERS = ("lightning", "pytorch_lightning", "lightning_fabric", "accelerate")


def updating_optimizer(optimizer: Any) -> Optimizer:  # noqa: ANN401
    """Return the optimizer whose own `step`, with its hooks, updates the parameters; for a wrapper the inner one.

    The wrappers of Lightning, Fabric and Accelerate pass `step` on. Others (Lookahead, OrthoGrad, SAM, Opacus's
    DPOptimizer, ...) do something before or after it; they update through the inner optimizer if they share its list of
    groups, call its `step`, and do not use the learning rate themselves. The training loop still steps the wrapper.

    Args:
        optimizer: a torch optimizer, or a wrapper of one.

    Returns:
        The inner optimizer, or `optimizer` itself if it wraps none, or is also an optimizer in its own right. It need
        not be one that supports layer-wise values (`check_supported`).

    Raises:
        TypeError: If it is not an optimizer, or a wrapper whose update does not go through one inner optimizer alone.

    Example:
        >>> import torch
        >>> class Lookahead(torch.optim.Optimizer):
        ...     def __init__(self, optimizer):
        ...         self.optimizer, self.param_groups = optimizer, optimizer.param_groups
        ...
        ...     def step(self, closure=None):
        ...         return self.optimizer.step(closure)
        >>> inner = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
        >>> updating_optimizer(Lookahead(inner)) is inner
        True
    """
    while True:
        inner = _inner(optimizer)
        if inner is None:
            return _with_hooks(optimizer)
        optimizer = inner


def stepping_optimizers(optimizer: Any) -> list[Optimizer]:  # noqa: ANN401
    """Return the optimizers whose step hooks run when the training loop steps a wrapper: itself, and the one inside.

    Args:
        optimizer: a torch optimizer, or a wrapper of one.

    Returns:
        The outer optimizer, if it has hooks, then the inner one; just one if nothing is wrapped, or nothing known.

    Raises:
        TypeError: none of them has hooks.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))], lr=0.1)
        >>> stepping_optimizers(optimizer) == [optimizer]
        True
    """
    own = [optimizer] if isinstance(optimizer, Optimizer) and _is_complete(optimizer) else []
    try:
        inner = updating_optimizer(optimizer)
    except TypeError:
        if own:
            return own
        raise
    return own if inner is optimizer else [*own, inner]


def shards_by_group(optimizer: Any) -> bool:  # noqa: ANN401
    """Whether the optimizer copies the values of its groups to those of another optimizer, which updates.

    Args:
        optimizer: Any optimizer.

    Returns:
        Whether it is a `ZeroRedundancyOptimizer`.
    """
    return any(base.__name__ == "ZeroRedundancyOptimizer" for base in type(optimizer).__mro__)


def _with_hooks(optimizer: Any) -> Optimizer:  # noqa: ANN401
    if isinstance(optimizer, Optimizer) and _is_complete(optimizer):
        return optimizer
    raise TypeError(
        "Expected argument `optimizer` to be a torch.optim.Optimizer with step hooks, but got"
        f" {type(optimizer).__name__}, which has none, or never called Optimizer.__init__. Use one that does."
    )


def _is_complete(optimizer: Any) -> bool:  # noqa: ANN401
    """Whether Optimizer.__init__ was called."""
    return "_optimizer_step_post_hooks" in vars(optimizer) and "_optimizer_state_dict_pre_hooks" in vars(optimizer)


def refuse_deepspeed(optimizer: Any) -> None:  # noqa: ANN401
    """Raise a TypeError for DeepSpeed's optimizers."""
    if "deepspeed" in {base.__module__.partition(".")[0] for base in type(optimizer).__mro__}:
        raise TypeError(
            f"Expected argument `optimizer` to be a torch optimizer that updates the model's own parameters, but got "
            f"DeepSpeed's {type(optimizer).__name__}, which updates flattened copies. Use another strategy (DDP,"
            " FSDP2), or give each layer its own group with `layerwise_param_groups` and set the rates there."
        )


def _inner(optimizer: Any) -> Any:  # noqa: ANN401
    refuse_deepspeed(optimizer)
    for base in type(optimizer).__mro__:
        if base.__name__ in _DELEGATING and base.__module__.partition(".")[0] in _TRAINERS:
            return _inner_of_trainers_wrapper(optimizer, base)
    if shards_by_group(optimizer):
        return None  # it copies hyperparameters group by group
    held = _held(optimizer)
    if not held:
        return None
    name = type(optimizer).__name__
    if len(held) > 1:
        raise TypeError(
            f"Expected argument `optimizer` to update by one list of groups, but got {name}, which holds"
            f" {len(held)} optimizers ({', '.join(type(inner).__name__ for inner in held.values())}). Use one optimizer"
            " with a group for each kind of parameter, or several that are stepped one by one."
        )
    ((attribute, inner),) = held.items()
    return _inner_of_wrapper(optimizer, attribute, inner)


def _inner_of_trainers_wrapper(optimizer: Any, base: type) -> Any:  # noqa: ANN401
    inner = vars(optimizer)[_DELEGATING[base.__name__]]
    refuse_deepspeed(inner)
    if type(optimizer).step is not getattr(base, "step", None):
        raise TypeError(
            f"Expected argument `optimizer` to be stepped by its own `step`, but got {type(optimizer).__name__}, whose"
            f" {type(inner).__name__} is stepped by something else. Use another strategy (DDP, FSDP2)."
        )
    return inner


def _inner_of_wrapper(optimizer: Any, attribute: str, inner: Any) -> Any:  # noqa: ANN401
    """Return the only optimizer that another one holds, or None if that other one is an optimizer by itself."""
    name, complete = type(optimizer).__name__, isinstance(optimizer, Optimizer) and _is_complete(optimizer)
    groups = getattr(optimizer, "param_groups", None)
    if groups is not inner.param_groups:
        raise TypeError(_other_list(name, attribute, inner, groups))
    if getattr(getattr(optimizer, "step", None), "__self__", None) is inner:
        return inner  # it passes on `step` as an attribute, or any attribute that it lacks
    code = methods_code(optimizer).values()
    steps_it = any(mentions(part, attribute) and mentions(part, "step") for part in code)
    uses_rate = any(holds_text(part, "lr") for part in code)
    if steps_it and not uses_rate:
        return inner
    if complete:
        return None
    why = (
        f"uses the learning rate itself, outside the update of the {type(inner).__name__} that it wraps"
        if steps_it
        else f"does not call the `step` of the {type(inner).__name__} that it wraps"
    )
    raise TypeError(
        f"Expected argument `optimizer` to update by its inner optimizer alone, but got {name}, which {why}, so that"
        " layer-wise values would reach a part of the update only. Use another optimizer."
    )


def _other_list(name: str, attribute: str, inner: Any, groups: Any) -> str:  # noqa: ANN401
    updated = {id(parameter) for group in inner.param_groups for parameter in group["params"]}
    known = {id(parameter) for group in groups or [] for parameter in group["params"]}
    remedy = (
        f" If `{attribute}` is what updates the parameters, pass that one."
        if updated & known
        else " It updates copies of the parameters. Use another optimizer."
    )
    return (
        f"Expected argument `optimizer` to take its groups from its list `param_groups`, but got {name}, whose"
        f" `{attribute}` ({type(inner).__name__}) has a list of its own.{remedy}"
    )


def _held(optimizer: Any) -> dict[str, Any]:  # noqa: ANN401
    """Return the optimizers that another one holds as attributes, or in lists or dicts; each once."""
    found: dict[int, tuple[str, Any]] = {}
    for attribute, value in getattr(optimizer, "__dict__", {}).items():
        if attribute in ("param_groups", "state"):
            continue
        listed = list(value.values()) if isinstance(value, dict) else value
        for number, entry in enumerate(listed if isinstance(listed, (list, tuple)) else [value]):
            if entry is not optimizer and _looks_like_one(entry):
                found.setdefault(id(entry), (attribute if entry is value else f"{attribute}[{number}]", entry))
    return dict(found.values())


def _looks_like_one(value: object) -> bool:
    if isinstance(value, Optimizer):
        return True
    return callable(getattr(value, "step", None)) and isinstance(getattr(value, "param_groups", None), list)
