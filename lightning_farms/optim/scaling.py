"""Layer-wise multipliers of an optimizer's hyperparameter that are in force only while the optimizer updates."""

import functools
import math
import sys
from collections.abc import Callable, Mapping
from itertools import chain
from types import FrameType, TracebackType
from typing import Any

import torch
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_farms.optim._group_split import GroupSplit
from lightning_farms.optim._guarded_step import NOTE, GuardedStep, guard
from lightning_farms.optim._own_values import are_same, copied, is_container
from lightning_farms.optim._proof import Proof
from lightning_farms.optim._scaled_group import Group, ScaledGroup, have_same_members
from lightning_farms.optim._watched_group import StandIn
from lightning_farms.optim.support import ScaledTwiceError, check_has_number, check_supported
from lightning_farms.optim.unwrap import shards_by_group, updating_optimizer


class LayerwiseScaling:
    r"""Scales a hyperparameter of an optimizer layer by layer, whatever its groups and its scheduler are.

    .. math:: \eta_l(t) = \eta(t) \cdot m_l

    At rest ``group[key]`` is always the base value :math:`\eta(t)`, so that schedulers and checkpoints never see a
    multiplier. Between the optimizer's step pre-hook and post-hook, scaled groups replace the user's groups, which are
    never changed: one per layer (for PyTorch's own optimizers one per distinct multiplier, after a closure). A single
    assignment to ``optimizer.param_groups[:]`` puts them in force and another takes them out, so that a signal handler
    finds either the one or the other. A closure given to ``step`` (Lightning runs forward and backward in it) sees the
    base values and the user's own groups, which stay if it raises. ``state_dict`` holds these too, wherever it is
    called, even in a signal handler, and leaves everything as it was. What the update writes into groups is kept.

    If the update itself raises, the user's groups are restored before the exception arrives. If an interrupt prevents
    this, the next ``step``, ``state_dict``, ``load_state_dict``, `restore` or `detach` restores them.
    Step hooks that others register on the same optimizer after `attach`, and global ones, may run inside the window.
    Scalings of different hyperparameters can be attached to one optimizer.

    Args:
        optimizer: A torch optimizer (see `check_supported`), or a wrapper of one (see `updating_optimizer`).
        layer_of: Layer of each parameter, by the parameter's identity. Parameters missing in it keep the base value;
            parameters that the optimizer lacks are ignored.
        key: The hyperparameter to scale, e.g. "lr" or "weight_decay"; every group must have it.

    Raises:
        TypeError: If the optimizer is not supported or `layer_of` is not a mapping of tensors to names.
        ValueError: If a group lacks `key`, or its value is neither a number nor a tensor.

    Note:
        Each layer has its own copy of values that an optimizer keeps in its groups; if layers disagree, a checkpoint of
        the optimizer holds the first layer's, and `state_dict` of this object all of them. The first steps are watched:
        see `proved` and `fault`. Optimizers that know their groups by position need `layerwise_param_groups`.
        A copy is not attached. Only ``state_dict`` is safe at any moment: copying the optimizer inside an update, or
        reading ``param_groups`` there, meets the scaled groups, and if another thread calls ``state_dict``, the scaling
        of the current update ends.

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
        outer, optimizer = optimizer, updating_optimizer(optimizer)
        check_supported(optimizer, layer_of, key=key)
        check_has_number(optimizer, key)
        self._optimizer = optimizer
        self._holders = [optimizer]  # optimizers whose `state_dict` would see the scaled groups
        if outer is not optimizer and "_optimizer_state_dict_pre_hooks" in vars(outer):
            self._holders.append(outer)
        self._layer_of = dict(layer_of)
        self._key = key
        self._ones = dict.fromkeys(self._layer_of.values(), 1.0)
        self._multipliers = self._ones  # a new dictionary whenever a value changes
        self._all_ones = True
        self._handles: list[RemovableHandle] = []
        self._splits: list[GroupSplit] = []
        self._parts: list[list[Group]] = []  # groups that the last `_open` put in the place of each group
        self._in_force: list[Group] = []  # all of these in one list
        self._scaled: list[ScaledGroup] = []  # those of them that are scaled
        self._in_window = False  # whether they were put in force
        self._origin: dict[int, tuple[Group, Group]] = {}  # {id: (scaled group, so that the id stays its own; group)}
        self._pending: dict[int, list[tuple[list[str | None], Group]]] = {}  # own values by group, for the next `_open`
        self._last_params: list[torch.Tensor] = []  # parameters at the last step
        self._last_trained: list[bool] = []  # whether these required a gradient
        self._is_pytorchs = type(optimizer).__module__.startswith("torch.optim.")  # updates each parameter by itself
        self._plain = self._is_pytorchs and not isinstance(optimizer, torch.optim.Rprop)  # Rprop reads a rate only once
        self._guard: GuardedStep | None = None
        self._has_run = False  # whether a step with scaled groups has been completed
        self._steps = 0
        self._fault: str | None = None
        self._proof = Proof(key, copied=shards_by_group(optimizer))
        self._peers: list[LayerwiseScaling] = []  # all scalings attached to the optimizer
        self._looked_at: list[StandIn] = []  # groups that record what is read from them
        self.on_trained_change: Callable[[], None] | None = None
        self._interrupted: list[tuple[list[Group], bool, bool] | None] = []  # what running state_dicts found, if open
        self._depth = 0  # depth of nested steps: super().step() in a subclass's step fires the hooks once more
        self._frame: FrameType | None = None  # the outermost step's frame, on the stack as long as it runs

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer whose groups are scaled, of a wrapper the inner one that updates (see `updating_optimizer`)."""
        return self._optimizer

    @property
    def key(self) -> str:
        """Name of the scaled hyperparameter."""
        return self._key

    @property
    def attached(self) -> bool:
        """Whether the hooks are in place."""
        return self in self._stack()

    @property
    def steps(self) -> int:
        """Number of updates that have gone through the hooks since `attach`; one that raises does not count."""
        return self._steps

    @property
    def fault(self) -> str | None:
        """Why the update did not use the values asked for, and what to do; None if nothing was found."""
        return self._fault

    @property
    def proved(self) -> bool:
        """Whether a step has used the values asked for since the division into layers of equal value last changed."""
        return self._proof.proved and self._fault is None

    @property
    def multipliers(self) -> dict[str, float]:
        """Each layer's multiplier, 1 at first; assign a mapping (layers missing in it get 1) to change them.

        Raises:
            ValueError: If a layer is unknown, or a multiplier is not finite and positive. For "weight_decay" it may be
                0.
        """
        return dict(self._multipliers)

    @multipliers.setter
    def multipliers(self, multipliers: Mapping[str, float]) -> None:
        values = {layer: float(value) for layer, value in multipliers.items()}
        unknown = [layer for layer in values if layer not in self._ones]
        if unknown:
            raise ValueError(
                f"Expected argument `multipliers` to be keyed by the layers of `layer_of`, but got {unknown[:5]}."
            )
        may_be_zero = self._key == "weight_decay"
        for layer, value in values.items():
            if not (0.0 < value < math.inf or (value == 0.0 and may_be_zero)):
                raise ValueError(
                    f"Expected argument `multipliers` to be finite and {'not negative' if may_be_zero else 'positive'},"
                    f" but got {value} for layer {layer!r}. Leave a layer out to keep the base value."
                )
        values = {**self._ones, **values}
        if values != self._multipliers:
            self._multipliers, self._all_ones = values, values == self._ones
            self._proof.again()

    def effective(self) -> dict[str, float]:
        """Return the value that the next update would use for each layer: the base value times the multiplier.

        A layer whose parameters are in groups with different base values is represented by the first of them in
        `layer_of`'s order (put a layer's weight first). Layers without a parameter in the optimizer are left out.
        """
        base: dict[torch.Tensor, float] = {}
        for group in self._own_groups():
            base.update(dict.fromkeys(group["params"], float(group[self._key])))
        rates: dict[str, float] = {}
        for parameter, layer in self._layer_of.items():
            if parameter in base and layer not in rates:
                rates[layer] = base[parameter] * (1.0 if self._fault else self._multipliers[layer])
        return rates

    def disable(self, reason: str) -> None:
        """Use the base values from the next step on, whatever the multipliers are; `fault` is then `reason`."""
        self._fault = reason

    def state_dict(self) -> dict[str, Any]:
        """Return the values on which the scaled groups disagree, to resume from; {} if there are none.

        They are keyed by group position and layers; the optimizer's own ``state_dict`` holds only the first layer's.
        """
        known = {id(split.group): split for split in self._splits}
        own = dict(self._pending)
        for index, group in enumerate(self._own_groups()):
            if id(group) in known:
                own[index] = known[id(group)].own_values()
        parts = [
            {"group": index, "layers": list(layers), "values": copied(values, {})}
            for index, entries in own.items()
            for layers, values in entries
        ]
        return {"own_values": parts} if parts else {}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Put the values of a `state_dict` in force at the next step, as far as their groups and layers exist.

        The optimizer's own state has to be loaded as well, in any order.
        """
        self._pending = {}
        for entry in state_dict.get("own_values", []):
            self._pending.setdefault(entry["group"], []).append((list(entry["layers"]), copied(entry["values"], {})))

    def trained_parameters(self) -> set[torch.Tensor]:
        """Return the optimizer's parameters that required a gradient at its last step.

        (Or that do now, if they had no step: between steps they may be frozen, e.g. in turn with an adversary's.)
        """
        then = dict(zip(self._last_params, self._last_trained, strict=True))
        return {p for group in self._own_groups() for p in group["params"] if then.get(p, p.requires_grad)}

    def remember(self, other: "LayerwiseScaling") -> None:
        """Take over what another scaling knows of the same optimizer: its last step, its fault, its own values."""
        self._last_params, self._last_trained = other._last_params, other._last_trained
        self._fault = self._fault or other._fault
        if other._key == self._key:
            self.load_state_dict(other.state_dict())

    def attach(self) -> None:
        """Put the hooks in place; nothing happens if they already are.

        Raises:
            ScaledTwiceError: If another scaling of the same hyperparameter is attached to the optimizer.
        """
        if self.attached:
            return
        if any(other.key == self._key for other in self._stack()):
            raise ScaledTwiceError(
                f"Expected at most one scaling of {self._key!r} on an optimizer, but got a second one. Detach the first"
                " (their multipliers would compound), or make the optimizer anew."
            )
        self._steps = 0
        post = self._optimizer.register_step_post_hook(self._after_step)
        hooks = post.hooks_dict_ref()
        assert hooks is not None
        hooks.move_to_end(post.id, last=False)  # so that the window opened last is closed first
        self._handles = [self._optimizer.register_step_pre_hook(self._before_step), post]
        self._introduce()
        for holder in self._holders:
            self._handles += [
                holder.register_state_dict_pre_hook(self._before_state_dict, prepend=True),
                holder.register_state_dict_post_hook(self._after_state_dict),
                holder.register_load_state_dict_pre_hook(self._before_load_state_dict, prepend=True),
            ]
        self._guard = guard(self._optimizer, self._after_exception)

    def detach(self) -> None:
        """Restore the base values and remove the hooks; nothing happens if there are none."""
        self.restore()
        self.load_state_dict(self.state_dict())
        for handle in self._handles:
            handle.remove()
        self._handles = []
        self._introduce()
        if self._guard is not None:
            self._guard.leave(self._after_exception)
            self._guard = None
        self._forget_splits()

    def restore(self) -> None:
        """Restore the base values and the user's own groups at once, e.g. after an exception inside the update."""
        for scaling in reversed(self._with_those_opened_later()):
            scaling._close()
            scaling._proof.running = False
            scaling._interrupted.clear()
            scaling._depth, scaling._frame = 0, None

    def __getstate__(self) -> dict[str, Any]:  # copies of optimizers have no hooks
        return {**vars(self), "_handles": [], "_guard": None}

    def __enter__(self) -> "LayerwiseScaling":
        self.attach()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.detach()

    def _stack(self) -> "list[LayerwiseScaling]":
        """List the scalings attached to the optimizer in the order of attachment (first opened, last closed)."""
        hooks = getattr(self._optimizer, "_optimizer_step_pre_hooks", {})
        owners = (getattr(hook, "__self__", None) for hook in hooks.values())
        return [owner for owner in owners if isinstance(owner, LayerwiseScaling)]

    def _introduce(self) -> None:
        """Make all scalings of the optimizer known to each other."""
        stack = self._stack()
        for scaling in {*stack, *self._peers, self}:
            scaling._peers = stack if scaling in stack else []

    def _with_those_opened_later(self) -> "list[LayerwiseScaling]":
        stack = self._stack()
        return stack[stack.index(self) :] if self in stack else [self]

    def _before_step(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        if self._depth and not self._step_is_running():
            self.restore()  # an earlier step raised
        if not self._depth:
            self._frame = sys._getframe(1)
        self._depth += 1
        if self._depth > 1:
            return None
        self._note_trained(optimizer)
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if not (callable(closure) and self._is_pytorchs):  # PyTorch's own optimizers call a closure first of all
            self._open()
        if not callable(closure):
            return None
        outside = self._outside_window(closure)
        return ((args[0], outside, *args[2:]), kwargs) if len(args) > 1 else (args, {**kwargs, "closure": outside})

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if self._depth == 1:
            self._fault = self._fault or self._proof.overwritten()
            self._close()
            self._frame, self._steps = None, self._steps + 1
            self._has_run |= not self._all_ones
            self._fault = self._fault or self._proof.verdict(optimizer.state)
        self._depth = max(0, self._depth - 1)

    def _after_exception(self, error: BaseException) -> None:
        """Restore everything, so that code that goes on (also schedulers) finds the user's own groups."""
        if self._is_open() and isinstance(error, Exception) and not (self._has_run or self._is_pytorchs):
            error.add_note(NOTE)
        self.restore()

    def _note_trained(self, optimizer: Optimizer) -> None:
        """Record which parameters require a gradient, and notify if these have changed since the last step."""
        params = list(chain.from_iterable(group["params"] for group in optimizer.param_groups))
        trained = [parameter.requires_grad for parameter in params]
        former, self._last_params = self._last_params, params
        changed = self._last_trained != trained or not are_same(former, params)
        self._last_trained = trained
        if changed and self.on_trained_change is not None:  # also at the first step, as a resumed run has no former one
            self.on_trained_change()

    def _outside_window(self, closure: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(closure)
        def suspended(*args: Any, **kwargs: Any) -> Any:  # noqa: ANN401
            self._close(before_update=True)
            try:
                result = closure(*args, **kwargs)
            except BaseException:
                self.restore()  # also releases the step's frame, and with it the caller's variables
                raise
            if self._depth:
                self._open()
            return result

        return suspended

    def _before_state_dict(self, optimizer: Optimizer) -> None:
        if self._depth and not self._step_is_running():
            self.restore()
        found = (list(optimizer.param_groups), self._in_window, bool(self._looked_at))
        self._interrupted.append(found if self._is_open() else None)
        self._close()

    def _after_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        found = self._interrupted.pop() if self._interrupted else None
        if found is not None:
            optimizer.param_groups[:], self._in_window, was_looking = found
            self._look(was_looking)

    def _before_load_state_dict(self, optimizer: Optimizer, state_dict: dict[str, Any]) -> None:
        self.restore()

    def _step_is_running(self) -> bool:
        """Whether the step's frame is that of a (direct or indirect) caller."""
        caller: FrameType | None = sys._getframe(1)
        while caller is not None and caller is not self._frame:
            caller = caller.f_back
        return caller is not None

    def _is_open(self) -> bool:
        return any(id(group) in self._origin for group in self._optimizer.param_groups)

    def _open(self) -> None:
        if self._is_open():
            return
        self._look(False)
        own = list(self._optimizer.param_groups)
        nothing_asked = self._all_ones and not any(split.must_stay(self._multipliers) for split in self._splits)
        if self._fault is not None or (nothing_asked and not self._pending):
            self._forget_splits()
            if self._fault is None:
                self._proof.watch([], own, own, self._optimizer.state)
            return
        self._splits = self._current_splits()
        for index, split in enumerate(self._splits):
            if index in self._pending:
                split.take_over(self._pending[index])
        self._pending = {}
        parts = [split.open(self._multipliers) for split in self._splits]
        if not are_same(parts, self._parts):
            self._origin = {
                id(scaled.group): (scaled.group, split.group)
                for split in self._splits
                for scaled in split.scaled_groups
            }
            self._scaled = [scaled for split in self._splits for scaled in split.scaled_groups]
            self._in_force = [group for part in parts for group in part]
            self._parts = parts  # last, so that all is done again after an interruption
        if self._origin:
            self._proof.watch(self._scaled, self._in_force, own, self._optimizer.state)
            self._optimizer.param_groups[:] = self._in_force
            self._in_window = True
            self._look(True)

    def _close(self, *, before_update: bool = False) -> None:
        self._take_back()
        if self._is_open():
            self._look(False)
            for split in self._splits:  # before closing, so that no `state_dict` finds groups without these values
                split.write_back(before_update=before_update)
                split.pass_on_what_was_read(keep=self._proof.running)
            self._optimizer.param_groups[:] = self._without_scaled_groups(self._optimizer.param_groups)

    def _take_back(self) -> None:
        """Handle an update that has replaced the scaled groups, by copies or by something else."""
        groups: list[Group] = self._optimizer.param_groups
        own = [split.group for split in self._splits]
        was_in_window, self._in_window = self._in_window, False
        if not was_in_window or any(are_same(groups, known) for known in (self._in_force, own)):
            return
        if len(groups) == len(self._in_force) and all(map(have_same_members, groups, self._in_force)):
            for mine, copy in [pair for pair in zip(self._in_force, groups, strict=True) if pair[0] is not pair[1]]:
                mine.clear()
                mine.update(copy)
            groups[:] = self._in_force
        elif not self._is_open():
            groups[:] = own
            self.disable("the update replaces the groups in `param_groups` by others. Use an optimizer that keeps them")

    def _forget_splits(self) -> None:
        self._in_window = False
        self._splits, self._parts, self._in_force, self._scaled, self._origin = [], [], [], [], {}

    def _look(self, on: bool) -> None:
        """Start or stop recording what the update reads from the groups in force, if a proof needs it."""
        for scaling in self._peers:
            for group in scaling._looked_at:
                group.watch(False)
            scaling._looked_at = []
        if on and any(scaling._proof.running for scaling in self._peers):
            self._looked_at = [group for group in self._optimizer.param_groups if isinstance(group, StandIn)]
            for group in self._looked_at:
                group.watch(True)

    def _without_scaled_groups(self, groups: list[Group]) -> list[Group]:
        """List the groups with scaled groups replaced by their user's group, once each; others stay as they are."""
        if self._splits and are_same(groups, self._in_force):
            return [split.group for split in self._splits]
        own = (self._origin.get(id(group), (group, group))[1] for group in groups)
        return list({id(group): group for group in own}.values())

    def _own_groups(self) -> list[Group]:
        """List the groups as they are in force while this window is closed, whether or not it is closed now."""
        groups: list[Group] = self._optimizer.param_groups
        for scaling in reversed(self._with_those_opened_later()):
            groups = scaling._without_scaled_groups(groups)
        return groups

    def _current_splits(self) -> list[GroupSplit]:
        """Return the division of each of the optimizer's groups, made anew only if the group has changed."""
        groups: list[Group] = self._optimizer.param_groups
        if len(groups) == len(self._splits) and all(map(GroupSplit.divides, self._splits, groups)):
            return self._splits
        known = {id(split.group): split for split in self._splits}
        splits = []
        for group in groups:
            split = known.get(id(group))
            fits = split is not None and split.divides(group)
            splits.append(split if split and fits else self._new_split(group))
        return splits

    def _new_split(self, group: Group) -> GroupSplit:
        defaults = self._optimizer.defaults.items()
        common = [name for name, value in defaults if is_container(value) and len(value)]
        return GroupSplit(group, self._layer_of, self._key, merged=self._is_pytorchs, plain=self._plain, common=common)
