"""Puts other tensors in the place of a module's parameters and buffers for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

Table = dict[str, Tensor | None]
"""The parameters, or the buffers, of one module by name."""


class Put(Protocol):
    """Puts a tensor in the place of the one of this name."""

    def __call__(self, table: Table, name: str, tensor: Tensor) -> None: ...


def parameters_of(module: nn.Module) -> Table:
    """Return the table in which a module itself holds its parameters."""
    return cast(Table, module._parameters)


@contextmanager
def replacing() -> Iterator[Put]:
    """Yield a function that replaces a tensor; at the end all of them are put back, the last one first."""
    former: list[tuple[Table, str, Tensor | None]] = []

    def put(table: Table, name: str, tensor: Tensor) -> None:
        former.append((table, name, table[name]))
        table[name] = tensor

    try:
        yield put
    finally:
        for table, name, tensor in reversed(former):
            table[name] = tensor


@contextmanager
def evaluated_parametrisations(module: nn.Module) -> Iterator[None]:
    """Keep what reading a parametrised weight would change: buffers, random states, spectral_norm's iteration."""
    if not parametrize.is_parametrized(module):
        yield
        return
    parts = list(module.parametrizations.modules())  # type: ignore[union-attr]
    training = [part for part in parts if part.training]
    devices = {p.device for p in module.parametrizations.parameters() if p.device.type == "cuda"}  # type: ignore[union-attr]
    with torch.random.fork_rng(devices), replacing() as put:
        try:
            for part in parts:
                part.training = False
                for name, buffer in part.named_buffers(recurse=False):
                    put(part._buffers, name, buffer.clone())
            yield
        finally:
            for part in training:
                part.training = True
