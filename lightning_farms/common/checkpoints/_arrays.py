"""Arrays of other programs' files, as PyTorch has such weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor, naming
from lightning_farms.common.checkpoints.shapes import StoredTensors

GRU_FROM_ZRN = (1, 0, 2)
"""Gates z, r, n as other programs store them, in PyTorch's order r, z, n."""


class StoredArray(NamedTuple):
    """An array of a file.

    Attributes:
        shape: as PyTorch has it.
        dtype: as stored.
        read: the numbers.
        layout: what its dimensions mean; empty where the file does not tell.
        quantised: the format of packed numbers.
        unpacked: their format, where ``read`` unpacks them.
        reason: why it is no weight.
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
            return _or_unreadable(array.read)

    def without_values(self, name: str) -> Tensor:
        """On the meta device."""
        array = self._arrays[name]
        with naming(name, self._path):
            return _or_unreadable(lambda: torch.empty(array.shape, dtype=array.dtype, device="meta"))


def _or_unreadable(read: Callable[[], Tensor]) -> Tensor:
    """The numbers; of a damaged file reading can fail in any way."""
    try:
        return read()
    except (ImportError, MemoryError, UnreadableTensor):
        raise
    except Exception as error:
        raise UnreadableTensor(f"damaged ({type(error).__name__})") from error


def in_blocks(matrix: Tensor, order: Sequence[int]) -> Tensor:
    """Blocks of rows in another order."""
    blocks = matrix.chunk(len(order))
    return torch.cat([blocks[index] for index in order]) if len(blocks) == len(order) > 1 else matrix


def to_tensor(array: np.ndarray) -> Tensor:
    """A tensor of an array, also of NumPy's extension types for bfloat16, floats of 8 bits, and integers of fewer."""
    name = array.dtype.name
    if name == "bfloat16":
        return torch.from_numpy(array.view(np.uint16).copy()).view(torch.bfloat16)
    if name.startswith("float8") and hasattr(torch, name):
        return torch.from_numpy(array.view(np.uint8).copy()).view(getattr(torch, name))
    if name in ("int4", "uint4", "int2", "uint2"):
        array = array.astype(np.int8)
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    return torch.from_numpy(np.ascontiguousarray(native))
