"""Folders of torch.distributed.checkpoint, whose tensors are assembled from chunks when they are asked for."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_farms.common.checkpoints._inert_pickle import MOST_BYTES, Name, PickleError, StandIn, read_pickle
from lightning_farms.common.checkpoints._places import METADATA
from lightning_farms.common.checkpoints._state_dicts import STATE_DICT_KEYS
from lightning_farms.common.checkpoints._torch_file import Builder, read_torch_bytes, torch_dtype
from lightning_farms.common.checkpoints.pickled_tensor import PickledTensor, UnreadableTensor
from lightning_farms.common.texts import listed

_NOT_COVERED = "damaged: its parts do not cover it: files of other processes are missing"
_LONGEST = 4096  # characters of a file's name
_Box = tuple[tuple[int, int], ...]


class _Chunk(NamedTuple):
    """Position of a part in its tensor, and the place of its archive in a file."""

    offsets: tuple[int, ...]
    file: Path
    start: int
    length: int
    packed: bool


@dataclass(frozen=True)
class ChunkedTensor(PickledTensor):
    """A tensor whose parts are separate archives in one or several files."""

    chunks: tuple[_Chunk, ...] = ()
    check: bool = True

    @property
    def identity(self) -> object:
        """Unique, as no two of these tensors are the same numbers of the files, as far as the folder tells."""
        return id(self)

    def read(self) -> Tensor:
        """Read the tensor and assemble it from its parts.

        Raises:
            UnreadableTensor: a part is damaged, or the parts do not cover the tensor.
        """
        self._check_shape()
        if math.prod(self.shape) * self.dtype.itemsize > _stored_bytes(self.chunks):
            raise UnreadableTensor(_NOT_COVERED)
        whole = torch.empty(self.shape, dtype=self.dtype)
        boxes: list[_Box] = []
        for chunk in self.chunks:
            part = _read_chunk(chunk, self.check)
            box = tuple((start, start + size) for start, size in zip(chunk.offsets, part.shape, strict=False))
            fits = len(chunk.offsets) == part.ndim == whole.ndim and part.dtype == self.dtype
            if not fits or any(
                not 0 <= start <= end <= size for (start, end), size in zip(box, self.shape, strict=True)
            ):
                raise UnreadableTensor("damaged: a part does not fit into it")
            whole[tuple(slice(start, end) for start, end in box)] = part
            boxes.append(box)
        _check_cover(boxes, math.prod(self.shape))
        return whole


def _stored_bytes(chunks: Sequence[_Chunk]) -> int:
    """Number of bytes of all parts, counting no more of a file than it has."""
    claimed: Counter[Path] = Counter()
    for chunk in chunks:
        claimed[chunk.file] += chunk.length
    return sum(min(length, file.stat().st_size) for file, length in claimed.items())


def _check_cover(boxes: Sequence[_Box], numbers: int) -> None:
    """Raise an error unless the parts cover the tensor, each of its numbers once."""
    filled = sum(math.prod(end - start for start, end in box) for box in boxes)
    if filled < numbers:
        raise UnreadableTensor(_NOT_COVERED)
    open_boxes: list[_Box] = []
    for box in sorted(box for box in boxes if box and all(start < end for start, end in box)):
        open_boxes = [other for other in open_boxes if other[0][1] > box[0][0]]
        if any(all(a < d and c < b for (a, b), (c, d) in zip(box, other, strict=True)) for other in open_boxes):
            raise UnreadableTensor("damaged: two parts have the same place in it")
        open_boxes.append(box)


def _read_chunk(chunk: _Chunk, check: bool) -> Tensor:
    if chunk.packed:
        raise UnreadableTensor("its parts are compressed: save it without `extensions`")
    if chunk.start + chunk.length > chunk.file.stat().st_size:
        raise UnreadableTensor(f"damaged: a part reaches beyond the end of {chunk.file.name!r}")
    with chunk.file.open("rb") as file:
        file.seek(chunk.start)
        content = bytearray(file.read(chunk.length))
    try:
        part = read_torch_bytes(content, check=check).content
    except PickleError as error:
        raise UnreadableTensor(f"damaged: {error}") from error
    if not isinstance(part, PickledTensor):
        raise UnreadableTensor("damaged: a part of it is no tensor")
    return part.read()


def read_distributed(folder: Path, *, check: bool = True) -> dict[str, Any]:
    """Read the structure of a folder, nested as it was saved; tensors are read later, other values are left out.

    Raises:
        PickleError: its `.metadata` is damaged.
        FileNotFoundError: a file named there is missing.
        ValueError: a file named there is outside the folder.
    """
    metadata = _state(_read_metadata(folder / METADATA))
    described = metadata.get("state_dict_metadata")
    if not isinstance(described, dict):
        raise PickleError("its .metadata describes no tensors")
    chunks = _chunks(folder, metadata.get("storage_data"))
    paths = metadata.get("planner_data")
    content: dict[str, Any] = {}
    for name, entry in described.items():
        tensor = _tensor(_state(entry), chunks.get(str(name), ()), check)
        if tensor is not None:
            path = _path(str(name), paths)
            _put(content, path, tensor)
    return content


def _read_metadata(file: Path) -> object:
    if file.stat().st_size > MOST_BYTES:
        raise PickleError(f"its .metadata has more than {MOST_BYTES} bytes")
    return read_pickle(file.read_bytes(), Builder().build, lambda _: StandIn("a persistent object"))


def _state(value: object) -> Mapping[str, Any]:
    return value.state if isinstance(value, StandIn) and isinstance(value.state, dict) else {}


def _path(name: str, paths: object) -> tuple[str, ...]:
    """The keys that lead to a tensor; if they were not recorded, the name split at the key of a state dict only."""
    path = paths.get(name) if isinstance(paths, dict) else None
    if isinstance(path, (tuple, list)) and path:
        return tuple(map(str, path))
    first, dot, rest = name.partition(".")
    return (first, rest) if dot and (first in STATE_DICT_KEYS or first.startswith("optim")) else (name,)


def _put(content: dict[str, Any], path: tuple[str, ...], tensor: PickledTensor) -> None:
    for index, key in enumerate(path[:-1]):
        below = content.setdefault(key, {})
        if not isinstance(below, dict):
            content[".".join(path)] = tensor
            return
        content = below
        if index > 64:
            raise PickleError("its .metadata is nested too deeply")
    content[path[-1]] = tensor


def _tensor(entry: Mapping[str, Any], chunks: tuple[_Chunk, ...], check: bool) -> PickledTensor | None:
    size, properties = entry.get("size"), entry.get("properties")
    held = properties.state if isinstance(properties, StandIn) else None
    named = held.get("dtype") if isinstance(held, dict) else None
    if isinstance(held, tuple) and held:
        named = held[0]
    dtype = torch_dtype(named) if isinstance(named, Name) else None
    if dtype is None or not isinstance(size, tuple) or not all(type(each) is int for each in size):
        return None
    return ChunkedTensor(size, dtype, chunks=chunks, check=check)


def _chunks(folder: Path, stored: object) -> dict[str, tuple[_Chunk, ...]]:
    found: dict[str, list[_Chunk]] = {}
    for index, info in _entries(stored):
        name, offsets = str(index.get("fqn")), index.get("offset")
        start, length, file = info.get("offset"), info.get("length"), info.get("relative_path")
        if type(start) is int and type(length) is int and isinstance(file, str) and min(start, length) >= 0:
            places = offsets if isinstance(offsets, tuple) else ()
            where = places if all(type(each) is int for each in places) else ()
            packed = bool(info.get("transform_descriptors"))
            found.setdefault(name, []).append(_Chunk(where, folder / file, start, length, packed))
    _check_files(folder, {chunk.file for each in found.values() for chunk in each})
    return {name: tuple(each) for name, each in found.items()}


def _entries(stored: object) -> Iterator[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    for index, info in (stored if isinstance(stored, dict) else {}).items():
        yield _state(index), _state(info)


def _check_files(folder: Path, files: set[Path]) -> None:
    if any("\0" in str(file) or len(str(file)) > _LONGEST for file in files):
        raise PickleError("its .metadata names a file by what is no name")
    root = folder.resolve()
    outside = sorted(str(file) for file in files if not file.resolve().is_relative_to(root))
    if outside:
        raise ValueError(
            f"Expected the files that {str(folder / METADATA)!r} names to be in its folder, but {outside[0]!r} is not."
        )
    missing = sorted(os.path.relpath(file, folder) for file in files if not file.is_file())
    if missing:
        raise FileNotFoundError(
            f"Expected the files that {str(folder / METADATA)!r} names to be beside it, but {len(missing)} are "
            f"missing: {listed(missing)}. Copy them too (each "
            "process has written its own)."
        )
