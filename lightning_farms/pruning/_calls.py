"""Recording of the arguments that a decoder passes to each of its blocks, so that a block can be run alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lightning_farms.pruning._forward import replaced_forward

_Tree: TypeAlias = Any  # tensors and other values, nested in tuples, lists and dictionaries


class Hidden(NamedTuple):
    """Placeholder for the hidden states in a block's arguments."""


class BlockCall(NamedTuple):
    """Arguments of a block for one sequence, with `Hidden` in the place of the hidden states."""

    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def run(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run the block and return the new hidden states (1, T, d)."""

        def filled(leaf: object) -> object:
            return hidden if isinstance(leaf, Hidden) else _moved(leaf, hidden.device)

        output = block(*_mapped(self.args, filled), **_mapped(self.kwargs, filled))
        result: Tensor = output if isinstance(output, Tensor) else output[0]
        return result


class DecoderCalls(NamedTuple):
    """Inputs of the first block, (1, T, d) per sequence, and the calls of each block, one per sequence."""

    hidden: list[Tensor]
    calls: dict[str, list[BlockCall]]


class _Stop(Exception):
    """Ends a forward pass after the last block."""


@torch.no_grad()
def decoder_calls(model: nn.Module, blocks: Mapping[str, nn.Module], ids: Tensor, device: torch.device) -> DecoderCalls:
    """Find the arguments of every block for token ids (N, T), with a full pass of the model over one sequence only.

    If the blocks cannot be run one by one, a ValueError names the model and the reason.
    """
    outputs, truly = _outputs(model, blocks, ids[:1].to(device))
    outputs = _mapped(outputs, _blank)  # reveals a model that uses what a block returns besides hidden states
    hidden: list[Tensor] = []
    calls: dict[str, list[BlockCall]] = {name: [] for name in blocks}
    known: list[Tensor] = []
    for index in range(ids.shape[0]):
        first, found = _arguments(model, blocks, outputs, ids[index : index + 1].to(device))
        if index == 0 and not _equal(list(truly.values()), list(found.values())):
            raise _unfit(model, "hands its blocks values that depend on the outputs of earlier blocks")
        hidden.append(first)
        for name, call in found.items():
            calls[name].append(BlockCall(*_mapped(tuple(call), lambda leaf: _shared(leaf, known))))
    return DecoderCalls(hidden, calls)


def _outputs(
    model: nn.Module, blocks: Mapping[str, nn.Module], ids: Tensor
) -> tuple[dict[str, Any], dict[str, BlockCall]]:
    """Outputs of each block besides hidden states, and its arguments, in a full pass over one sequence."""
    beside: dict[str, Any] = {}
    calls: dict[str, BlockCall] = {}
    latest: list[Tensor] = []

    def watch(name: str) -> Callable[..., None]:
        def hook(block: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: _Tree) -> None:
            hidden = _hidden_of(model, args, kwargs)
            if name in calls:
                raise _unfit(model, f"calls {name} more than once")
            if latest and not _same(latest.pop(), hidden):
                raise _unfit(model, f"changes the hidden states before {name}")
            first = _first(model, output)
            calls[name] = _call(args, kwargs, hidden)
            if not _same(calls[name].run(_Forward(block), hidden), first):
                raise _unfit(model, f"has a block, {name}, that gives something else when it is run again")
            latest.append(first)
            beside[name] = None if isinstance(output, Tensor) else output[1:]

        return hook

    with ExitStack() as stack:
        for name, block in blocks.items():
            handle = block.register_forward_hook(watch(name), with_kwargs=True)
            stack.callback(handle.remove)
        try:
            model(input_ids=ids, use_cache=False)
        except RuntimeError as error:
            if not any(parameter.is_meta for block in blocks.values() for parameter in block.parameters()):
                raise
            what = "uses weights without calling the modules that hold them, so that they are not read from disk"
            raise _unfit(model, f"{what}: leave out `offload_folder`") from error
    if list(calls) != list(blocks):
        raise _unfit(model, f"does not call its blocks one after the other: {', '.join(calls) or 'none'}")
    return beside, calls


class _Forward(nn.Module):
    """A block without its hooks."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self._forward = block.forward

    def forward(self, *args: _Tree, **kwargs: _Tree) -> _Tree:
        return self._forward(*args, **kwargs)


def _arguments(
    model: nn.Module, blocks: Mapping[str, nn.Module], beside: Mapping[str, Any], ids: Tensor
) -> tuple[Tensor, dict[str, BlockCall]]:
    """The input of the first block, and the arguments of all blocks in a pass in which they do nothing."""
    inputs: list[Tensor] = []
    calls: dict[str, BlockCall] = {}

    def idle(name: str) -> Callable[..., Any]:
        def forward(*args: _Tree, **kwargs: _Tree) -> _Tree:
            hidden = _hidden_of(model, args, kwargs)
            inputs.append(hidden)
            calls[name] = _call(args, kwargs, hidden)
            if len(calls) == len(blocks):
                raise _Stop
            return hidden if beside[name] is None else (hidden, *beside[name])

        return forward

    with ExitStack() as stack:
        for name, block in blocks.items():
            stack.enter_context(replaced_forward(block, idle(name)))
        try:
            model(input_ids=ids, use_cache=False)
        except _Stop:
            pass
        except (AttributeError, LookupError, TypeError) as error:  # of a tuple of a kind of its own, as of Reformer
            raise _unfit(model, f"does more with what its blocks return than hand it on ({error})") from error
    return inputs[0], calls


@contextmanager
def experts_one_by_one(model: nn.Module) -> Iterator[None]:
    """Set the model to evaluation and to running experts one by one, so that each product is seen; restore it after."""
    training = model.training
    experts = getattr(getattr(model, "config", None), "_experts_implementation", None)
    model.eval()
    if experts is not None:
        model.set_experts_implementation("eager")  # type: ignore[operator]
    try:
        yield
    finally:
        model.train(training)
        if experts is not None:
            model.set_experts_implementation(experts)  # type: ignore[operator]


def _hidden_of(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    hidden = args[0] if args else kwargs.get("hidden_states")
    if not isinstance(hidden, Tensor):
        raise _unfit(model, "does not hand hidden states to its blocks first")
    return hidden


def _call(args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor) -> BlockCall:
    return BlockCall(*_mapped((args, kwargs), lambda leaf: Hidden() if leaf is hidden else leaf))


def _first(model: nn.Module, output: _Tree) -> Tensor:
    try:
        first = output if isinstance(output, Tensor) else output[0]
    except (LookupError, TypeError):  # a dictionary, or an object of the program's own
        first = None
    if not isinstance(first, Tensor):
        raise _unfit(model, "has blocks that do not return hidden states first")
    return first


def _unfit(model: nn.Module, what: str) -> ValueError:
    return ValueError(
        f"Expected argument `model` to be a decoder whose blocks can be run one by one, but {type(model).__name__} "
        f"{what}."
    )


def _mapped(tree: _Tree, change: Callable[[Any], Any]) -> _Tree:
    if isinstance(tree, Hidden):
        return change(tree)
    if type(tree) in (tuple, list):
        return type(tree)(_mapped(each, change) for each in tree)
    if type(tree) is dict:
        return {key: _mapped(value, change) for key, value in tree.items()}
    return change(tree)


def _moved(leaf: object, device: torch.device) -> object:
    return leaf.to(device) if isinstance(leaf, Tensor) else leaf


def _blank(leaf: object) -> object:
    if not isinstance(leaf, Tensor):
        return leaf
    return torch.full_like(leaf, torch.nan if leaf.is_floating_point() else 0)


def _shared(leaf: object, known: list[Tensor]) -> object:
    """Replace a tensor by an equal known one, so that masks and positions are kept once for all blocks and inputs."""
    if not isinstance(leaf, Tensor):
        return leaf
    for each in known[-64:]:
        if each is leaf or (each.dtype == leaf.dtype and _same(each, leaf)):
            return each
    known.append(leaf)
    return leaf


def _same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are equal; NaN in the same places counts as equal, and is detected where it matters."""
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def _equal(one: _Tree, other: _Tree) -> bool:
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and _same(one, other)
    if isinstance(one, (tuple, list)):
        return len(one) == len(other) and all(_equal(a, b) for a, b in zip(one, other, strict=True))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(value, other[key]) for key, value in one.items())
    return True
