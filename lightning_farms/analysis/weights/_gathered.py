"""Plain tensors in the place of parameters that are sharded over processes or not strided."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_farms.analysis.weights._foreign import is_spectral_convolution


def modules_read(module: nn.Module) -> list[nn.Module]:
    """The modules whose parameters the weights of a module are computed from.

    Args:
        module: the module.

    Returns:
        The module itself, the parts of its parametrisations, low-rank factors, and the parts of a spectral weight.
    """
    if is_spectral_convolution(module):
        return list(module.modules())
    read = [module]
    for name, child in module.named_children():
        if name.startswith("lora_") or (name == "parametrizations" and parametrize.is_parametrized(module)):
            read.extend(child.modules())
    return read


def needs_stand_in(tensor: Tensor) -> bool:
    """Whether a tensor is sharded, or of a sparse or other layout that is not strided.

    Args:
        tensor: any tensor.

    Returns:
        Whether it is.
    """
    return is_sharded(tensor) or tensor.layout != torch.strided


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is held in parts by several processes: a DTensor, or whatever else has a ``full_tensor()``.

    DTensor itself is not asked for: to import it takes half a second.

    Args:
        tensor: any tensor.

    Returns:
        Whether it is.
    """
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor, *, values: bool = True) -> Tensor:
    """All of a tensor, in one plain strided tensor, or its shape only.

    Args:
        tensor: any tensor. To gather a sharded one is a collective: every process that holds a part must call this.
        values: whether the values are wanted. Without, nothing is communicated.

    Returns:
        The tensor; on the meta device without ``values``.
    """
    if not values:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if is_sharded(tensor):
        with torch.no_grad():
            tensor = cast(Tensor, tensor.full_tensor())  # type: ignore[attr-defined]
    return tensor if tensor.layout == torch.strided else tensor.detach().to_dense()


@contextmanager
def stand_ins(modules: Iterable[nn.Module], *, values: bool) -> Iterator[dict[int, Tensor]]:
    """Put plain tensors into modules for a while.

    Args:
        modules: whose own parameters and buffers are meant.
        values: whether the stand-ins have values: full tensors for those that need it. Without, all parameters and
            buffers are replaced, by tensors on the meta device.

    Yields:
        {id of a stand-in: the tensor in whose place it is}. At the end everything is put back.
    """
    originals: list[tuple[dict[str, Tensor | None], str, Tensor]] = []
    behind: dict[int, Tensor] = {}
    try:
        for module in modules:
            for held in (cast("dict[str, Tensor | None]", module._parameters), module._buffers):
                for name, tensor in list(held.items()):
                    if tensor is None or (values and not needs_stand_in(tensor)):
                        continue
                    plain = full_tensor(tensor, values=values)
                    is_parameter = held is module._parameters
                    stand_in = nn.Parameter(plain, requires_grad=False) if is_parameter else plain
                    originals.append((held, name, tensor))
                    held[name], behind[id(stand_in)] = stand_in, tensor
        yield behind
    finally:
        for held, name, tensor in originals:
            held[name] = tensor
