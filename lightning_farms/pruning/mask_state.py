"""Which weights of a model are pruned, kept as bits, and held at zero while an optimizer steps."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.hooks import RemovableHandle

from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights.stored import StoredWeight, stored_weights
from lightning_farms.optim.unwrap import stepping_optimizers
from lightning_farms.pruning._bits import packed, unpacked
from lightning_farms.pruning._local import local, local_part, whole


class _Packed(NamedTuple):
    """A mask at rest."""

    bits: Tensor
    shape: tuple[int, ...]
    zeros: int


class _Bound(NamedTuple):
    """A parameter, and which of what is here of it is pruned."""

    parameter: Tensor
    pruned: Tensor


class Masks:
    """One mask a parameter, True where the weight stays, as in ``torch.nn.utils.prune``; in any training loop.

    The model is left as it is: its weights are plain parameters that hold exact zeros, so that its state dict has the
    keys it always has, and a mask that is let go of leaves a pruned model behind. Whatever an optimizer does in a step
    (momentum, weight decay), :meth:`hold` puts the zeros back before anyone sees the weights.

    Masks are whole and the same in all processes; parameters may be DTensors (FSDP2, tensor parallelism), of which each
    process holds its own part at zero. The state is therefore the same for any number of processes.

    Args:
        masks: {name of a parameter: bool, of its shape}.

    Raises:
        TypeError: a mask is not of bool.

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
        self._parameters: dict[str, Tensor] = {}  # bound ones
        self._bound: dict[str, _Bound] = {}
        self._handles: list[RemovableHandle] = []
        for name, mask in (masks or {}).items():
            self[name] = mask

    @classmethod
    def from_zeros(cls, model: nn.Module, selection: Selection = Selection()) -> Masks:
        """The masks of a model that has been pruned: the weights that are exactly 0 in it.

        Weights of zeros alone (a layer that is initialised so) are left out: held, they could never learn. Of sharded
        parameters one after the other is gathered: a collective.

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

    # ---- what is pruned ----------------------------------------------------------------------------------------------

    def __setitem__(self, name: str, mask: Tensor) -> None:
        if mask.dtype != torch.bool:
            raise TypeError(f"Expected argument `mask` to be of torch.bool, but got {mask.dtype} for {name!r}.")
        self._packed[name] = _Packed(packed(mask), tuple(mask.shape), int((~mask).sum()))
        if name in self._parameters:
            self._bind(name)

    def __getitem__(self, name: str) -> Tensor:
        bits, shape, _ = self._packed[name]
        return unpacked(bits, shape)

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
        """Which entries of a weight are pruned.

        Args:
            weight: of :func:`lightning_farms.analysis.weights.stored.stored_weights`, one that has a parameter.

        Returns:
            (number of entries,), bool, in the order in which they are stored.
        """
        if weight.key not in self._packed:
            return torch.zeros(weight.size, dtype=torch.bool, device="cpu")
        return ~self[weight.key].flatten()[weight.parts[0]]

    def take_out(self, weight: StoredWeight, pruned: Tensor) -> None:
        """Prune entries of a weight, beside what is pruned; :meth:`apply` makes them zero.

        Args:
            weight: of :func:`lightning_farms.analysis.weights.stored.stored_weights`, one that has a parameter.
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
        """{name of a parameter: {"bits": uint8, as of ``numpy.packbits``, "shape": a list}}."""
        return {name: {"bits": mask.bits, "shape": list(mask.shape)} for name, mask in self._packed.items()}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take the masks of a state in the place of those that there are; :meth:`bind` comes after it."""
        self.release()
        self._packed = {}
        for name, saved in state_dict.items():
            self[name] = unpacked(saved["bits"].cpu(), saved["shape"])

    # ---- in force ----------------------------------------------------------------------------------------------------

    def bind(self, parameters: Mapping[str, Tensor]) -> None:
        """Let the masks, and those that come later, be those of these parameters; a collective where they are DTensors.

        Args:
            parameters: {name: parameter}.

        Raises:
            ValueError: a mask has no parameter, or one of another shape.
        """
        for name, mask in self._packed.items():
            if name not in parameters:
                raise ValueError(f"Expected argument `parameters` to hold every masked one, but it lacks {name!r}.")
            if tuple(parameters[name].shape) != mask.shape:
                raise ValueError(
                    f"Expected argument `parameters` to hold {name!r} in the shape of its mask, {mask.shape}, but got "
                    f"{tuple(parameters[name].shape)}."
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
        """Set the same weights of other parameters of these names to zero: averages of the bound ones, say.

        Args:
            parameters: {name: parameter}, on any device; those that have no mask are left alone.
        """
        for name, bound in self._bound.items():
            if name in parameters:
                other = local(parameters[name])
                other.masked_fill_(bound.pruned.to(other.device), 0)

    @torch.no_grad()
    def revived(self) -> int:
        """Number of pruned weights of the bound parameters, here, that are not zero."""
        return sum(int((local(parameter)[pruned] != 0).sum()) for parameter, pruned in self._bound.values())

    @torch.no_grad()
    def mask_gradients(self) -> None:
        """Set the gradients of pruned weights to zero: they count in no norm then. Call it before the clipping.

        Sparse gradients (of some tables of embeddings) stay as they are.
        """
        for parameter, pruned in self._bound.values():
            if parameter.grad is not None and not parameter.grad.is_sparse:
                local(parameter.grad).masked_fill_(pruned, 0)

    @torch.no_grad()
    def clear(self, optimizer: Optimizer) -> None:
        """Set what an optimizer remembers of pruned weights (momentum, second moments, averages) to zero."""
        for each in stepping_optimizers(optimizer):
            for parameter, pruned in self._bound.values():
                remembered = each.state[parameter].values() if parameter in each.state else ()
                for value in remembered:
                    if isinstance(value, Tensor) and value.shape == parameter.shape and _is_of_numbers(value):
                        local(value).masked_fill_(pruned, 0)

    def hold(self, optimizers: Iterable[Optimizer]) -> None:
        """Put the zeros back after every step of these optimizers, and of no others, until :meth:`release`.

        Of wrappers (SAM, Lookahead, ...) also after every step of the optimizer inside, which may be the only one.

        Raises:
            TypeError: an optimizer has no step hooks, nor one inside that has.
        """
        stepping = [each for optimizer in optimizers for each in stepping_optimizers(optimizer)]
        for handle in self._handles:
            handle.remove()
        self._handles = [each.register_step_post_hook(self._after_step) for each in stepping]

    def release(self) -> None:
        """Let go of optimizers and parameters. The weights stay as they are: pruned for good, as far as nobody trains.

        (What :meth:`state_dict` holds stays too.)
        """
        self.hold(())
        self._parameters, self._bound = {}, {}

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.apply()


def entries(parameter: Tensor, weight: StoredWeight) -> Tensor:
    """(1 or 2, number of entries): what a weight's parameter holds of it, real and imaginary parts where it has two."""
    flat = parameter.flatten()
    return torch.stack([flat[part] for part in weight.parts])


def _is_of_numbers(tensor: Tensor) -> bool:
    return tensor.is_floating_point() or tensor.is_complex()
