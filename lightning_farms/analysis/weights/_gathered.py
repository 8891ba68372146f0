"""Gathers parameters that are sharded over processes, or not strided, into plain tensors for a while."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from lightning_farms.analysis.weights._foreign import is_spectral_convolution
from lightning_farms.analysis.weights._replacing import parameters_of, replacing


def modules_read(module: nn.Module) -> list[nn.Module]:
    """Return the modules from whose parameters the weights of a module are computed."""
    if is_spectral_convolution(module):
        return list(module.modules())
    read = [module]
    for name, child in module.named_children():
        if name.startswith("lora_") or (name == "parametrizations" and parametrize.is_parametrized(module)):
            read.extend(child.modules())
    return read


def must_be_gathered(tensor: Tensor) -> bool:
    """Whether a tensor is sharded, or its layout is not strided (sparse or other)."""
    return is_sharded(tensor) or tensor.layout != torch.strided


def is_sharded(tensor: Tensor) -> bool:
    """Whether a tensor is held in parts by several processes: a DTensor, or anything else with a ``full_tensor()``.

    DTensor itself is not checked for, as importing it takes half a second.
    """
    return hasattr(tensor, "full_tensor")


def full_tensor(tensor: Tensor, *, values: bool = True) -> Tensor:
    """Return the whole tensor as one plain strided tensor, or only its shape (on the meta device) without values."""
    if not values:
        return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")
    if is_sharded(tensor):
        with torch.no_grad():
            tensor = cast(Tensor, tensor.full_tensor())  # type: ignore[attr-defined]
    return tensor if tensor.layout == torch.strided else tensor.detach().to_dense()


@contextmanager
def gathered(modules: Iterable[nn.Module], *, values: bool) -> Iterator[dict[int, Tensor]]:
    """Replace the parameters and buffers that must be gathered by plain tensors for a while.

    Without values all of them are replaced, by tensors on the meta device. Yields {id of a plain tensor: the original};
    at the end the originals are put back.
    """
    originals: dict[int, Tensor] = {}
    with replacing() as put:
        for module in modules:
            for table in (parameters_of(module), module._buffers):
                for name, tensor in list(table.items()):
                    if tensor is None or (values and not must_be_gathered(tensor)):
                        continue
                    plain = full_tensor(tensor, values=values)
                    plain = nn.Parameter(plain, requires_grad=False) if table is module._parameters else plain
                    put(table, name, plain)
                    originals[id(plain)] = tensor
        yield originals
