"""Arrays from files of other programs, converted to PyTorch's conventions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_farms.common.checkpoints.pickled_tensor import naming, or_unreadable
from lightning_farms.common.checkpoints.shapes import StoredTensors

GRU_FROM_ZRN = (1, 0, 2)
"""Order that turns the gates z, r, n, as other programs store them, into PyTorch's r, z, n."""


class StoredArray(NamedTuple):
    """An array of a file.

    Attributes:
        shape: shape in PyTorch's convention.
        dtype: stored type.
        read: function that reads the numbers.
        layout: meaning of its dimensions; empty if the file does not tell.
        quantised: the format of packed numbers.
        unpacked: the format of packed numbers if ``read`` unpacks them.
        reason: why it is not a weight.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    read: Callable[[], Tensor]
    layout: str = ""
    quantised: str = ""
    unpacked: str = ""
    reason: str = ""


class ArrayTensors(StoredTensors):
    """Arrays of a file that are read when they are asked for."""

    def __init__(self, arrays: Mapping[str, StoredArray], path: Path) -> None:
        self._names = self._arrays = arrays
        self._path = path
        self.layouts = {name: array.layout for name, array in arrays.items() if array.layout}
        self.quantised = {name: array.quantised for name, array in arrays.items() if array.quantised}
        self.unpacked = {name: array.unpacked for name, array in arrays.items() if array.unpacked}
        self.refused = {name: array.reason for name, array in arrays.items() if array.reason}

    def __getitem__(self, name: str) -> Tensor:
        array = self._arrays[name]
        if array.quantised or array.reason:
            return self.without_values(name)
        with naming(name, self._path):
            return or_unreadable(array.read)

    def without_values(self, name: str) -> Tensor:
        """The tensor on the meta device."""
        array = self._arrays[name]
        with naming(name, self._path):
            return or_unreadable(lambda: torch.empty(array.shape, dtype=array.dtype, device="meta"))


def in_blocks(matrix: Tensor, order: Sequence[int]) -> Tensor:
    """Reorder the blocks of rows of a matrix."""
    blocks = matrix.chunk(len(order))
    return torch.cat([blocks[index] for index in order]) if len(blocks) == len(order) > 1 else matrix


def to_tensor(array: np.ndarray) -> Tensor:
    """Convert an array to a tensor, including NumPy's extension types (bfloat16, 8-bit floats, smaller integers)."""
    name = array.dtype.name
    if name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    if name.startswith("float8") and hasattr(torch, name):
        return torch.from_numpy(array.view(np.uint8).copy()).view(getattr(torch, name))
    if name in ("int4", "uint4", "int2", "uint2"):
        array = array.astype(np.int8)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.ascontiguousarray(native))
