"""GGUF files, whose blocks of packed numbers are unpacked by the package gguf."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_farms.common.checkpoints._gguf_header import GGUFTensor, read_header
from lightning_farms.common.checkpoints._inert_pickle import PickleError
from lightning_farms.common.checkpoints._natural import natural
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor, naming
from lightning_farms.common.checkpoints.safe_load import damaged
from lightning_farms.common.checkpoints.shapes import StoredTensors
from lightning_farms.common.extras import import_extra

_PLAIN = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}


class GGUFTensors(StoredTensors):
    """Tensors of a GGUF file in natural order; quantised ones are dequantised if asked for, or else have no values."""

    def __init__(self, path: Path, *, dequantize: bool) -> None:
        self._path = path
        self._known: Any = import_extra("gguf.constants", extra="formats", what=repr(str(path)))
        try:
            self._header = read_header(path)
            self._overlapping = self._find_overlapping()
        except (PickleError, ValueError) as error:
            raise damaged(path, error) from error
        found = sorted(self._header.tensors, key=lambda tensor: natural(tensor.name))
        self._tensors = {tensor.name: tensor for tensor in found}
        self._names = self._tensors
        self._dequantize = dequantize
        packed = {name: f"GGUF {self._type(tensor)}" for name, tensor in self._tensors.items()}
        packed = {name: text for name, text in packed.items() if text.removeprefix("GGUF ") not in _PLAIN}
        self.quantised: Mapping[str, str] = {} if dequantize else packed
        self.unpacked: Mapping[str, str] = packed if dequantize else {}
        self.layouts = {name: "batch" for name, tensor in self._tensors.items() if len(tensor.shape) == 3}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        with naming(name, self._path):
            if self._type(tensor) in _PLAIN:
                return self._plain(tensor)
            return self._dequantised(tensor) if self._dequantize else self.without_values(name)

    def without_values(self, name: str) -> Tensor:
        """The tensor on the meta device."""
        tensor = self._tensors[name]
        packed = torch.float32 if self._dequantize else torch.uint8
        with naming(name, self._path):
            self._check_shape(tensor)
        return torch.empty(tensor.shape, dtype=_PLAIN.get(self._type(tensor), packed), device="meta")

    def _type(self, tensor: GGUFTensor) -> str:
        try:
            return str(self._known.GGMLQuantizationType(tensor.type).name)
        except ValueError:
            return f"type {tensor.type}"

    def _find_overlapping(self) -> set[str]:
        """Names of the tensors that share bytes with others.

        Raises:
            PickleError: more bytes follow the last tensor than its padding, so that all tensors may lie elsewhere.
        """
        tensors = sorted(self._header.tensors, key=lambda tensor: tensor.start)
        ends = [self._end(tensor) for tensor in tensors]
        names = [
            (before.name, after.name)
            for before, end, after in zip(tensors, ends, tensors[1:], strict=False)
            if end is not None and end > after.start
        ]
        known = [end for end in ends if end is not None]
        left = len(self._header.content) - max(known) if known and len(known) == len(ends) else 0
        if left >= self._header.alignment:
            raise PickleError(f"{left} bytes follow its last tensor, which is filled up to {self._header.alignment}")
        return {name for pair in names for name in pair}

    def _end(self, tensor: GGUFTensor) -> int | None:
        """End of a tensor's bytes; None if its type is not known."""
        try:
            block, size = self._known.GGML_QUANT_SIZES[self._known.GGMLQuantizationType(tensor.type)]
        except (KeyError, ValueError):
            return None
        return int(tensor.start + -(-math.prod(tensor.shape) // block) * size)

    def _check_shape(self, tensor: GGUFTensor) -> None:
        if tensor.name in self._overlapping:
            raise UnreadableTensor("damaged: it has bytes in common with another tensor")
        if math.prod(tensor.shape) >= 2**62:
            raise UnreadableTensor("damaged: its shape is none that a tensor can have")

    def _bytes(self, tensor: GGUFTensor, size: int) -> bytearray:
        """A copy of the tensor's bytes, which must lie within the file."""
        end = tensor.start + size
        if end > len(self._header.content):
            raise UnreadableTensor("damaged: it reaches beyond the end of the file")
        return bytearray(memoryview(self._header.content)[tensor.start : end])

    def _plain(self, tensor: GGUFTensor) -> Tensor:
        self._check_shape(tensor)
        dtype = _PLAIN[self._type(tensor)]
        raw = self._bytes(tensor, math.prod(tensor.shape) * dtype.itemsize)
        if not raw:
            return torch.empty(tensor.shape, dtype=dtype)
        values = torch.frombuffer(raw, dtype=dtype)
        if self._header.swapped:
            values.untyped_storage().byteswap(dtype)
        return values.reshape(tensor.shape)

    def _dequantised(self, tensor: GGUFTensor) -> Tensor:
        from gguf.quants import dequantize, quant_shape_to_byte_shape

        self._check_shape(tensor)
        if self._header.swapped:
            raise UnreadableTensor("quantised, in the other byte order")
        try:
            kind = self._known.GGMLQuantizationType(tensor.type)
            shape = quant_shape_to_byte_shape(tensor.shape, kind)
            packed = np.frombuffer(self._bytes(tensor, math.prod(shape)), dtype=np.uint8).reshape(shape)
            return torch.from_numpy(np.ascontiguousarray(dequantize(packed, kind), dtype=np.float32))
        except NotImplementedError as error:
            raise UnreadableTensor(f"quantised as {self._type(tensor)}, which gguf does not unpack") from error
        except UnreadableTensor:
            raise
        except (IndexError, KeyError, ValueError) as error:
            raise UnreadableTensor("damaged: its rows are no blocks of its type") from error
