"""Masks of a model's pruned weights, stored as bits, which hold these weights at zero while an optimizer steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights.stored import StoredWeight, stored_weights
from lightning_farms.common.parameters import local
from lightning_farms.optim.unwrap import stepping_optimizers
from lightning_farms.pruning._local import local_part, whole

_CHANGED = "Masks (a LayerwisePruning) are of one model: make new ones where it was changed after it was pruned."


class _Packed(NamedTuple):
    """A mask packed as bits, with the first entry in the highest bit of the first byte, as in numpy.packbits."""

    bits: Tensor
    shape: tuple[int, ...]
    zeros: int


class _Bound(NamedTuple):
    """A parameter, and the mask of the pruned entries of its part in this process."""

    parameter: Tensor
    pruned: Tensor


class Masks:
    """Pruning masks, one per parameter, True where the weight stays (as in ``torch.nn.utils.prune``), for any loop.

    The model is left as it is: its weights are plain parameters that hold exact zeros, so that its state dict keeps its
    usual keys, and the model stays pruned once the masks are released. Whatever an optimizer does in a step (momentum,
    weight decay), :meth:`hold` puts the zeros back before the weights are used again.

    Masks are whole and the same in all processes; parameters may be DTensors (FSDP2, tensor parallelism), of which each
    process holds its own part at zero. The state is therefore the same for any number of processes.

    Args:
        masks: {name of a parameter: bool, of its shape}.

    Raises:
        TypeError: a mask is not of type bool.

    Example:
        >>> model = nn.Linear(3, 2, bias=False)
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        >>> masks = Masks({"weight": torch.tensor([[True, False, True], [False, True, True]])})
        >>> masks.bind(dict(model.named_parameters()))
        >>> masks.apply()
        >>> masks.hold([optimizer])
        >>> model(torch.ones(1, 3)).sum().backward()
        >>> optimizer.step()
        >>> (model.weight == 0).tolist()
        [[False, True, False], [True, False, False]]
        >>> masks.state_dict()["weight"]["bits"]
        tensor([172], dtype=torch.uint8)
    """

    def __init__(self, masks: Mapping[str, Tensor] | None = None) -> None:
        self._packed: dict[str, _Packed] = {}
        self._parameters: dict[str, Tensor] = {}  # parameters that are bound
        self._bound: dict[str, _Bound] = {}
        self._handles: list[RemovableHandle] = []
        for name, mask in (masks or {}).items():
            self[name] = mask

    @classmethod
    def from_zeros(cls, model: nn.Module, selection: Selection = Selection()) -> Masks:
        """Make masks from a model that has been pruned, in which the pruned weights are exactly 0.

        Weights that are all zero (a layer initialised to zero) are left out, since they could never learn if held at
        zero. Sharded parameters are gathered one after another, which is a collective operation.

        Args:
            model: the model.
            selection: the weights to look at; by default all but embeddings.

        Example:
            >>> model = nn.Linear(2, 2)
            >>> with torch.no_grad():
            ...     _ = model.weight.copy_(torch.tensor([[0.0, 1.0], [2.0, 3.0]]))
            >>> Masks.from_zeros(model)["weight"].tolist()
            [[False, True], [True, True]]
        """
        masks = cls()
        for weight in stored_weights(model, selection):
            if weight.parameter is not None:
                zero = entries(whole(weight.parameter), weight).eq(0).all(0)
                if bool(zero.any()) and not bool(zero.all()):
                    masks.take_out(weight, zero)
        return masks

    # ---- pruned weights ----------------------------------------------------------------------------------------------

    def __setitem__(self, name: str, mask: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise TypeError(f"Expected argument `mask` to be of torch.bool, but got {mask.dtype} for {name!r}.")
        self._packed[name] = _Packed(_to_bits(mask), tuple(mask.shape), int((~mask).sum()))
        if name in self._parameters:
            self._bind(name)

    def __getitem__(self, name: str) -> Tensor:
        bits, shape, _ = self._packed[name]
        return _from_bits(bits, shape)

    def __iter__(self) -> Iterator[str]:
        return iter(self._packed)

    def __len__(self) -> int:
        return len(self._packed)

    def __contains__(self, name: object) -> bool:
        return name in self._packed

    @property
    def zeros(self) -> dict[str, int]:
        """{name of a parameter: number of its entries that are pruned}."""
        return {name: mask.zeros for name, mask in self._packed.items()}

    def pruned(self, weight: StoredWeight) -> Tensor:
        """Mark the entries of a weight that are pruned.

        Args:
            weight: one of :func:`lightning_farms.analysis.weights.stored.stored_weights` that has a parameter.

        Returns:
            (number of entries,), bool, in the order in which they are stored.
        """
        if weight.key not in self._packed:
            return torch.zeros(weight.size, dtype=torch.bool, device="cpu")
        return ~self[weight.key].flatten()[weight.parts[0]]

    def take_out(self, weight: StoredWeight, pruned: Tensor) -> None:
        """Prune further entries of a weight; :meth:`apply` sets them to zero.

        Args:
            weight: one of :func:`lightning_farms.analysis.weights.stored.stored_weights` that has a parameter.
            pruned: (number of entries,), bool, in the order in which they are stored.
        """
        assert weight.parameter is not None
        shape = tuple(weight.parameter.shape)
        mask = self[weight.key] if weight.key in self._packed else torch.ones(shape, dtype=torch.bool, device="cpu")
        flat = mask.flatten()
        for part in weight.parts:
            flat[part] &= ~pruned.cpu()
        self[weight.key] = flat.reshape(shape)

    # ---- state -------------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """State {name of a parameter: {"bits": uint8, as from ``numpy.packbits``, "shape": a list}}."""
        return {name: {"bits": mask.bits, "shape": list(mask.shape)} for name, mask in self._packed.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Replace the masks by those of a state; call :meth:`bind` afterwards."""
        self.release()
        self._packed = {}
        for name, saved in state_dict.items():
            self[name] = _from_bits(saved["bits"].cpu(), saved["shape"])

    # ---- enforcement -------------------------------------------------------------------------------------------------

    def bind(self, parameters: Mapping[str, Tensor]) -> None:
        """Bind the masks, and those added later, to these parameters; a collective operation if they are DTensors.

        Args:
            parameters: {name: parameter}.

        Raises:
            ValueError: a mask has no parameter, or its parameter has another shape.
        """
        for name, mask in self._packed.items():
            if name not in parameters:
                raise ValueError(
                    f"Expected argument `parameters` to hold every masked one, but it lacks {name!r}. {_CHANGED}"
                )
            if tuple(parameters[name].shape) != mask.shape:
                raise ValueError(
                    f"Expected argument `parameters` to hold {name!r} in the shape of its mask, {mask.shape}, but got "
                    f"{tuple(parameters[name].shape)}. {_CHANGED}"
                )
        self._parameters, self._bound = dict(parameters), {}
        for name in self._packed:
            self._bind(name)

    def _bind(self, name: str) -> None:
        parameter = self._parameters[name]
        self._bound[name] = _Bound(parameter, local_part(~self[name], parameter))

    @torch.no_grad()
    def apply(self) -> None:
        """Set the pruned weights of the bound parameters to zero."""
        for parameter, pruned in self._bound.values():
            local(parameter).masked_fill_(pruned, 0)

    @torch.no_grad()
    def apply_to(self, parameters: Mapping[str, Tensor]) -> None:
        """Set the same weights of other parameters with these names to zero, such as averages of the bound ones.

        Args:
            parameters: {name: parameter}, on any device; those that have no mask are left alone.
        """
        for name, bound in self._bound.items():
            if name in parameters:
                other = local(parameters[name])
                other.masked_fill_(bound.pruned.to(other.device), 0)

    @torch.no_grad()
    def revived(self) -> int:
        """Number of pruned weights of the bound parameters, in this process, that are not zero."""
        return sum(int((local(parameter)[pruned] != 0).sum()) for parameter, pruned in self._bound.values())

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of pruned weights to zero so that they count in no norm; call it before clipping.

        Sparse gradients (of some embedding tables) stay as they are.
        """
        for parameter, pruned in self._bound.values():
            if parameter.grad is not None and not parameter.grad.is_sparse:
                local(parameter.grad).masked_fill_(pruned, 0)

    @torch.no_grad()
    def clear(self, optimizer: Optimizer) -> None:
        """Set an optimizer's state of pruned weights (momentum, second moments, averages) to zero."""
        for each in stepping_optimizers(optimizer):
            for parameter, pruned in self._bound.values():
                remembered = each.state[parameter].values() if parameter in each.state else ()
                for value in remembered:
                    if isinstance(value, Tensor) and value.shape == parameter.shape and _is_of_numbers(value):
                        local(value).masked_fill_(pruned, 0)

    def hold(self, optimizers: Iterable[Optimizer]) -> None:
        """Put the zeros back after every step of these optimizers, and of no others, until :meth:`release`.

        For wrappers (SAM, Lookahead, ...) this includes every step of the optimizer inside, which may be the only one
        that steps.

        Raises:
            TypeError: neither an optimizer nor one inside it has step hooks.
        """
        stepping = [each for optimizer in optimizers for each in stepping_optimizers(optimizer)]
        for handle in self._handles:
            handle.remove()
        self._handles = [each.register_step_post_hook(self._after_step) for each in stepping]

    def release(self) -> None:
        """Release optimizers and parameters. The weights stay as they are, pruned until they are trained again.

        The masks, as :meth:`state_dict` holds them, stay too.
        """
        self.hold(())
        self._parameters, self._bound = {}, {}

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.apply()


def entries(parameter: Tensor, weight: StoredWeight) -> Tensor:
    """A weight's entries in its parameter, (1 or 2, number of entries): real and imaginary parts, where it has two."""
    flat = parameter.flatten()
    return torch.stack([flat[part] for part in weight.parts])


def _is_of_numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()


def _to_bits(mask: Tensor) -> Tensor:
    """Pack a mask of N entries into (ceil(N / 8),) uint8 on the CPU; the rest of the last byte is 0."""
    flat = mask.flatten().to(torch.uint8)
    flat = torch.nn.functional.pad(flat, (0, -flat.numel() % 8))
    shifted: Tensor = flat.unflatten(0, (-1, 8)) << _shifts(mask.device)
    return shifted.sum(1, dtype=torch.uint8).cpu()


def _from_bits(bits: Tensor, shape: Sequence[int]) -> Tensor:
    """Unpack bits to a mask of the given shape, on the bits' device."""
    flat = (bits.unsqueeze(1) >> _shifts(bits.device)).bitwise_and_(1).to(torch.bool).flatten()
    return flat[: math.prod(shape)].reshape(tuple(shape))


def _shifts(device: torch.device) -> Tensor:
    return torch.arange(7, -1, -1, dtype=torch.uint8, device=device)
