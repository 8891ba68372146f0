"""A safetensors file, read tensor by tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_farms.common.checkpoints._json_file import MOST_JSON, JSONError, parse_json
from lightning_farms.common.checkpoints._natural import natural
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor, naming, or_unreadable
from lightning_farms.common.checkpoints.safe_load import damaged
from lightning_farms.common.checkpoints.shapes import StoredTensors
from lightning_farms.common.extras import import_extra

_UNKNOWN = {"F6_E2M3", "F6_E3M2"}
_UNSLICED = {"F4"}  # two numbers per byte
_LONGEST_KERNEL = 31


class SafetensorsFile(StoredTensors):
    """The tensors of a file, in natural order."""

    def __init__(self, path: Path) -> None:
        package = import_extra("safetensors", extra="safetensors", what=repr(str(path)))
        try:
            self._file: Any = package.safe_open(path, framework="pt", device="cpu")
            _check_header(path)
        except (package.SafetensorError, JSONError, OSError) as error:
            raise damaged(path, error) from error
        self._path = path
        self._names = dict.fromkeys(sorted(self._file.keys(), key=natural))
        if self.metadata.get("format") == "mlx":
            shapes = {name: self._file.get_slice(name).get_shape() for name in self._names if name.endswith("weight")}
            self.layouts = {name: found for name, shape in shapes.items() if (found := _layout_of_mlx(shape))}

    @property
    def metadata(self) -> Mapping[str, str]:
        """The metadata in the file's header."""
        return self._file.metadata() or {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        with naming(name, self._path):
            _check_type(self._file.get_slice(name).get_dtype())
            return or_unreadable(lambda: self._file.get_tensor(name))

    def without_values(self, name: str) -> Tensor:
        if name not in self._names:
            raise KeyError(name)
        part = self._file.get_slice(name)
        shape = part.get_shape()
        if not shape or part.get_dtype() in _UNSLICED:
            return self[name].to("meta")
        with naming(name, self._path):
            _check_type(part.get_dtype())
            return or_unreadable(lambda: torch.empty(shape, dtype=part[:0].dtype, device="meta"))


def _layout_of_mlx(shape: Sequence[int]) -> str:
    """Layout of MLX kernels, (outputs, *kernel, inputs); with three dimensions, long ones are taken for a batch."""
    kernel = len(shape) - 2
    is_kernel = kernel in (2, 3) or (kernel == 1 and shape[1] <= _LONGEST_KERNEL)
    return f"o{'k' * kernel}i" if is_kernel else ""


def looks_like_safetensors(path: Path) -> bool:
    """Whether a file starts with the length of a JSON header and that header."""
    with path.open("rb") as file:
        start = file.read(9)
    return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8


def _check_header(path: Path) -> None:
    """Raise an error if the header names a tensor twice; the package would take the last, but checks all else."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length <= MOST_JSON:
            parse_json(file.read(length))


def _check_type(name: str) -> None:
    if name in _UNKNOWN:
        raise UnreadableTensor(f"of the type {name}, which PyTorch does not have: analyse the original checkpoint")
