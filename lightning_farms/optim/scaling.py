"""Layer-wise multipliers on an optimizer's hyperparameter, in force only while the optimizer updates."""

import functools
import math
import sys
from collections.abc import Callable, Iterator, Mapping
from types import FrameType, TracebackType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_farms.optim.group_split import Group, GroupSplit
from lightning_farms.optim.support import check_supported


class LayerwiseScaling:
    r"""Scales a hyperparameter of an optimizer layer by layer, whatever its groups and its scheduler are.

    .. math:: \eta_l(t) = \eta(t) \cdot m_l

    At rest ``group[key]`` is always the base value :math:`\eta(t)`, so that schedulers and checkpoints never meet a
    multiplier. Between the optimizer's step pre-hook and post-hook the groups carry :math:`\eta(t) \cdot m_l`: a group
    whose parameters share a multiplier is scaled in place, any other is replaced by one group a layer. A closure given
    to ``step`` (Lightning runs forward and backward in it) sees the base values and the user's own groups, and if it
    raises, they stay; so does ``state_dict``, wherever it is called. Values the update writes into the groups are kept.

    If the update itself raises, the groups stay scaled until the next ``step``, ``state_dict``, ``load_state_dict``,
    `restore` or `detach`, each of which puts them back first: call `restore` where exceptions are handled.
    Step hooks that others register on the same optimizer after `attach`, and global ones, may run inside the window.
    Scalings of different hyperparameters can be attached to one optimizer.

    Args:
        optimizer: A torch optimizer (see `check_supported`).
        layer_of: Layer of each parameter, by the parameter's identity. Parameters that it lacks keep the base value;
            parameters that the optimizer lacks are ignored.
        key: The hyperparameter to scale, e.g. "lr" or "weight_decay"; every group must have it.

    Raises:
        TypeError: If the optimizer is not supported or `layer_of` is not a mapping of tensors to names.
        ValueError: If a group lacks `key`, or its value is neither a number nor a tensor.

    Note:
        Optimizers that gather statistics of the rate in a group (schedule-free ones, say) get their own statistics for
        each layer, but a checkpoint holds only the group's. Give such an optimizer `layerwise_param_groups`.

    Example:
        >>> model = torch.nn.Sequential(torch.nn.Linear(1, 1, bias=False), torch.nn.Linear(1, 1, bias=False))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
        >>> with LayerwiseScaling(optimizer, {model[0].weight: "0", model[1].weight: "1"}) as scaling:
        ...     scaling.multipliers = {"0": 0.5, "1": 2.0}
        ...     scaling.effective()
        {'0': 0.25, '1': 1.0}
        >>> optimizer.param_groups[0]["lr"]
        0.5
    """

    def __init__(self, optimizer: Optimizer, layer_of: Mapping[torch.Tensor, str], *, key: str = "lr") -> None:
        if not isinstance(layer_of, Mapping) or not all(
            isinstance(parameter, torch.Tensor) and isinstance(layer, str) for parameter, layer in layer_of.items()
        ):
            raise TypeError(
                "Expected argument `layer_of` to be a mapping from parameters (tensors) to layer names, but got"
                f" {type(layer_of).__name__}: {str(layer_of)[:80]}."
            )
        check_supported(optimizer, layer_of)
        for index, group in enumerate(optimizer.param_groups):
            if not isinstance(group.get(key), (int, float, torch.Tensor)):
                raise ValueError(
                    f"Expected argument `key` to be a numeric hyperparameter of every parameter group, but got {key!r},"
                    f" where group {index} has {group.get(key)!r}. It knows {sorted(group.keys() - {'params'})}."
                )
        self._optimizer = optimizer
        self._layer_of = dict(layer_of)
        self._key = key
        self._multipliers = dict.fromkeys(self._layer_of.values(), 1.0)
        self._handles: list[RemovableHandle] = []
        self._splits: list[GroupSplit] = []
        self._stand_ins: list[Group] | None = None  # what param_groups holds while the window is open
        self._depth = 0  # a subclass's step that calls super().step() fires the hooks once more
        self._frame: FrameType | None = None  # the outermost step's frame: on the stack as long as it runs

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer whose groups are scaled."""
        return self._optimizer

    @property
    def key(self) -> str:
        """The scaled hyperparameter's name."""
        return self._key

    @property
    def attached(self) -> bool:
        """Whether the hooks are in place."""
        return bool(self._handles)

    @property
    def multipliers(self) -> dict[str, float]:
        """Each layer's multiplier, 1 at first; assign a mapping (layers that it lacks get 1) to change them.

        Raises:
            ValueError: If a layer is unknown or a multiplier is not finite and positive.
        """
        return dict(self._multipliers)

    @multipliers.setter
    def multipliers(self, multipliers: Mapping[str, float]) -> None:
        unknown = [layer for layer in multipliers if layer not in self._multipliers]
        if unknown:
            raise ValueError(
                f"Expected argument `multipliers` to be keyed by the layers of `layer_of`, but got {unknown[:5]}."
            )
        values = {layer: float(value) for layer, value in multipliers.items()}
        for layer, value in values.items():
            if not (math.isfinite(value) and value > 0):
                raise ValueError(
                    f"Expected argument `multipliers` to be finite and positive, but got {value} for layer {layer!r}."
                    " Leave a layer out to keep the base value."
                )
        self._multipliers = {layer: values.get(layer, 1.0) for layer in self._multipliers}

    def effective(self) -> dict[str, float]:
        """Return what the next update would use, per layer: the current base value times the multiplier.

        A layer whose parameters lie in groups with different base values is represented by the first of them in
        `layer_of`'s order (put a layer's weight first). Layers without a parameter in the optimizer are left out.
        """
        base: dict[torch.Tensor, float] = {}
        for split in self._current_splits():
            base.update(dict.fromkeys(split.group["params"], float(split.base())))
        rates: dict[str, float] = {}
        for parameter, layer in self._layer_of.items():
            if parameter in base and layer not in rates:
                rates[layer] = base[parameter] * self._multipliers[layer]
        return rates

    def trained_parameters(self) -> set[torch.Tensor]:
        """Return the optimizer's parameters that require a gradient now."""
        groups = (split.group for split in self._current_splits())
        return {parameter for group in groups for parameter in group["params"] if parameter.requires_grad}

    def attach(self) -> None:
        """Put the hooks in place; nothing happens if they are.

        Raises:
            RuntimeError: If another scaling of the same hyperparameter is attached to the optimizer.
        """
        if self._handles:
            return
        if any(other.key == self._key for other in self._stack()):
            raise RuntimeError(
                f"Expected at most one scaling of {self._key!r} on an optimizer, but got a second one. Detach the first"
                " (their multipliers would compound)."
            )
        post = self._optimizer.register_step_post_hook(self._after_step)
        hooks = post.hooks_dict_ref()
        assert hooks is not None
        hooks.move_to_end(post.id, last=False)  # the last window opened is the first one closed
        self._handles = [
            self._optimizer.register_step_pre_hook(self._before_step),
            post,
            self._optimizer.register_state_dict_pre_hook(self._before_state_dict, prepend=True),
            self._optimizer.register_state_dict_post_hook(self._after_state_dict),
            self._optimizer.register_load_state_dict_pre_hook(self._before_load_state_dict, prepend=True),
        ]

    def detach(self) -> None:
        """Put the base values back and take the hooks away; nothing happens if there are none."""
        self.restore()
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._splits = []

    def restore(self) -> None:
        """Put the base values and the user's own groups back at once, e.g. after an exception inside the update."""
        stack = self._stack()
        above = stack[stack.index(self) :] if self in stack else [self]
        for scaling in reversed(above):
            scaling._close()
            scaling._depth, scaling._frame = 0, None

    def __enter__(self) -> "LayerwiseScaling":
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _stack(self) -> "list[LayerwiseScaling]":
        """List the scalings attached to the optimizer, the first attached (first opened, last closed) first."""
        hooks = getattr(self._optimizer, "_optimizer_step_pre_hooks", {}).values()
        owners = (getattr(hook, "__self__", None) for hook in hooks)
        return [owner for owner in owners if isinstance(owner, LayerwiseScaling)]

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._depth and not self._step_is_running():
            self.restore()  # an earlier step raised
        self._depth += 1
        if self._depth > 1:
            return None
        self._frame = sys._getframe(1)
        self._open()
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._outside_window(kwargs["closure"])}
        if len(args) > 1 and callable(args[1]):
            return (args[0], self._outside_window(args[1]), *args[2:]), kwargs
        return None

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._depth:
            self._depth -= 1
            if not self._depth:
                self._frame = None
                self._close()

    def _outside_window(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(closure)
        def suspended(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self._close()
            try:
                result = closure(*args, **kwargs)
            except BaseException:
                self.restore()  # also lets go of the step's frame, and with it of the caller's variables
                raise
            if self._depth:
                self._open()
            return result

        return suspended

    def _before_state_dict(self, optimizer: Optimizer) -> None:
        if self._depth and not self._step_is_running():
            self.restore()
        self._close()

    def _after_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        if self._depth:
            self._open()

    def _before_load_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        self.restore()

    def _step_is_running(self) -> bool:
        return any(frame is self._frame for frame in _callers())

    def _open(self) -> None:
        if self._stand_ins is not None:
            return
        self._splits = self._current_splits()
        self._stand_ins = [group for split in self._splits for group in split.open(self._multipliers)]
        self._optimizer.param_groups[:] = self._stand_ins

    def _close(self) -> None:
        if self._stand_ins is None:
            return
        known = {id(group) for group in self._stand_ins}
        added = [group for group in self._optimizer.param_groups if id(group) not in known]
        self._stand_ins = None
        self._optimizer.param_groups[:] = [split.group for split in self._splits] + added
        for split in self._splits:
            split.close()

    def _current_splits(self) -> list[GroupSplit]:
        """Return the division of each of the optimizer's groups, made anew only where the group has changed."""
        if self._stand_ins is not None:
            return self._splits
        known = {id(split.group): split for split in self._splits}
        splits = []
        for group in self._optimizer.param_groups:
            split = known.get(id(group))
            fits = split is not None and split.divides(group)
            splits.append(split if split and fits else GroupSplit(group, self._layer_of, self._key))
        return splits


def _callers() -> Iterator[FrameType]:
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        yield frame
        frame = frame.f_back
