"""Puts other tensors in the place of a module's parameters and buffers for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol, cast

from torch import Tensor, nn

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
