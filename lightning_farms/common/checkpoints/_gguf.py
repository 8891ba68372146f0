"""GGUF files through the package gguf."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lightning_farms.common.checkpoints._natural import natural
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor
from lightning_farms.common.checkpoints.safe_load import damaged
from lightning_farms.common.checkpoints.shapes import StoredTensors

_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
_INTEGERS = {"I8": torch.int8, "I16": torch.int16, "I32": torch.int32, "I64": torch.int64}


class GGUFTensors(StoredTensors):
    """Tensors of a GGUF file in natural order; quantised ones are dequantised, if asked for, or have no values."""

    def __init__(self, path: Path, *, dequantize: bool) -> None:
        try:
            from gguf import GGUFReader
        except ImportError as error:
            raise ImportError(
                f'{str(path)!r} needs the package gguf: pip install "lightning-farms[formats]"'
            ) from error
        try:
            found: list[Any] = GGUFReader(path).tensors
        except (PermissionError, MemoryError):
            raise
        except Exception as error:  # of a damaged file
            raise damaged(path, error) from error
        self._tensors = {tensor.name: tensor for tensor in sorted(found, key=lambda tensor: natural(tensor.name))}
        self._names = self._tensors
        self._dequantize = dequantize
        packed = {
            name: f"GGUF {tensor.tensor_type.name}" for name, tensor in self._tensors.items() if _is_packed(tensor)
        }
        self.quantised: Mapping[str, str] = {} if dequantize else packed
        self.layouts = {name: "batch" for name, tensor in self._tensors.items() if len(tensor.shape) == 3}

    def __getitem__(self, name: str) -> Tensor:
        tensor = self._tensors[name]
        if not _is_packed(tensor):
            return _plain(tensor)
        return self._dequantised(name) if self._dequantize else self.without_values(name)

    def without_values(self, name: str) -> Tensor:
        """On the meta device."""
        tensor = self._tensors[name]
        packed = torch.float32 if self._dequantize else torch.uint8
        dtype = {**_PLAIN, **_INTEGERS}.get(tensor.tensor_type.name, packed)
        return torch.empty(_shape(tensor), dtype=dtype, device="meta")

    def _dequantised(self, name: str) -> Tensor:
        from gguf.quants import dequantize

        tensor = self._tensors[name]
        try:
            return torch.from_numpy(np.ascontiguousarray(dequantize(tensor.data, tensor.tensor_type), dtype=np.float32))
        except NotImplementedError as error:
            raise UnreadableTensor(f"quantised as {tensor.tensor_type.name}, which gguf does not unpack") from error


def _is_packed(tensor: Any) -> bool:  # noqa: ANN401
    return tensor.tensor_type.name not in {**_PLAIN, **_INTEGERS}


def _shape(tensor: Any) -> tuple[int, ...]:  # noqa: ANN401
    return tuple(int(size) for size in reversed(tensor.shape))


def _plain(tensor: Any) -> Tensor:  # noqa: ANN401
    dtype = {**_PLAIN, **_INTEGERS}[tensor.tensor_type.name]
    raw = torch.from_numpy(np.array(tensor.data).view(np.uint8).reshape(-1))
    return raw.view(dtype).reshape(_shape(tensor))
