"""A tensor in a torch.save file: its place, and reading it when it is asked for."""

from __future__ import annotations

import math
import mmap
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_farms.common.checkpoints._inert_pickle import PickleError

LARGEST_DENSE = 2**30
"""Size in bytes up to which a sparse or repeated tensor is made dense: the default workspace of an analysis."""

_MOST_ZEROS = 2**10
"""Zeros per stored number up to which a sparse tensor is made dense; otherwise a tiny file could fill the memory."""

_SHOWN = 80
MOST_DIMENSIONS = 64
_SMALL = 2**20  # entries that a view may have even if fewer are stored, as in an expanded tensor


class UnreadableTensor(ValueError):
    """Raised for a tensor that is damaged, has no values, or is too large; others in its file can still be read.

    Args:
        reason: what is wrong with it.
        where: its name and file, with which the message begins; empty if they are not known.
    """

    def __init__(self, reason: str, where: str = "") -> None:
        self.reason, self.where = reason, where
        super().__init__(reason, where)

    def __str__(self) -> str:
        return f"{self.where}: {self.reason}" if self.where else self.reason


@contextmanager
def naming(name: str, path: Path) -> Iterator[None]:
    """Add the tensor's name and file to the error of a tensor that cannot be read."""
    try:
        yield
    except UnreadableTensor as error:
        raise UnreadableTensor(error.reason, f"tensor {name[:_SHOWN]!r} of {str(path)!r}") from error


def or_unreadable(read: Callable[[], Tensor]) -> Tensor:
    """Read a tensor, turning the errors of a damaged file, which can be of any kind, into UnreadableTensor."""
    try:
        return read()
    except (ImportError, MemoryError, UnreadableTensor):
        raise
    except Exception as error:
        raise UnreadableTensor(f"damaged ({type(error).__name__})") from error


class Entry(NamedTuple):
    """Place of the numbers of a storage, or why they cannot be read; ``crc`` is None if the file has none."""

    offset: int
    size: int
    crc: int | None = None
    unpack: Callable[[], bytearray] | None = None
    fault: str = ""


@dataclass
class StorageFile:
    """The storages of one file, by key, mapped into memory.

    Attributes:
        content: the whole file.
        entries: the storages' entries by key.
        swapped: whether numbers are stored in the other byte order.
        check: whether a storage's CRC-32 is compared when it is first read.
    """

    content: mmap.mmap | bytearray
    entries: Mapping[str, Entry]
    swapped: bool = False
    check: bool = True
    _checked: set[str] = field(default_factory=set)

    def numbers(self, key: str, dtype: torch.dtype, count: int) -> Tensor:
        """A storage as a vector."""
        entry = self.entries.get(key)
        if entry is None:
            raise UnreadableTensor(f"damaged: the file has no storage {key[:_SHOWN]!r}")
        if entry.fault:
            raise UnreadableTensor(f"damaged: {entry.fault}")
        if not 0 <= count * dtype.itemsize <= entry.size:
            raise UnreadableTensor(f"damaged: its storage holds {entry.size} bytes, fewer than {count} numbers take")
        if not count:
            return torch.empty(0, dtype=dtype)
        content, offset = self.content, entry.offset
        if entry.unpack is not None:
            content, offset = _unpacked(entry.unpack), 0
        self._compare(key, entry, content, offset)
        raw = torch.frombuffer(content, dtype=torch.uint8, count=count * dtype.itemsize, offset=offset)
        raw = raw.clone() if raw.data_ptr() % dtype.itemsize or self.swapped else raw
        if self.swapped:
            raw.untyped_storage().byteswap(dtype)
        return raw.view(dtype)

    def _compare(self, key: str, entry: Entry, content: mmap.mmap | bytearray, offset: int) -> None:
        if not self.check or entry.crc is None or entry.unpack is not None or key in self._checked:
            return  # unpacked records were compared when they were unpacked
        with memoryview(content) as everything, everything[offset : offset + entry.size] as part:
            if zlib.crc32(part) != entry.crc:
                raise UnreadableTensor("damaged: its bytes do not have the CRC-32 that the file names")
        self._checked.add(key)


def _unpacked(unpack: Callable[[], bytearray]) -> bytearray:
    try:
        return unpack()
    except PickleError as error:
        raise UnreadableTensor(f"damaged: {error}") from error


class Storage(NamedTuple):
    """A storage, as a pickle names it."""

    file: StorageFile
    key: str
    dtype: torch.dtype
    length: int


@dataclass(frozen=True)
class PickledTensor:
    """A tensor of a pickle.

    Attributes:
        shape: its shape.
        dtype: its type.
        storage: its numbers; None where the file holds none.
        offset: offset of its first number in the storage.
        stride: its strides in numbers.
        parts: for a sparse tensor, its layout and the tensors of which it consists.
        reason: why it cannot be read.
        parameter: whether the pickle says that it is a parameter.
        flags: ``conj`` and ``neg`` if it is a lazy conjugate or negative.
    """

    shape: tuple[int, ...]
    dtype: torch.dtype
    storage: Storage | None = None
    offset: int = 0
    stride: tuple[int, ...] = ()
    parts: tuple[str, tuple[Any, ...]] | None = None
    reason: str = ""
    parameter: bool = False
    flags: tuple[str, ...] = ()

    @property
    def identity(self) -> object:
        """Equal for two tensors that are the same numbers of the file."""
        if self.storage is None:
            return id(self)
        return id(self.storage.file), self.storage.key, self.dtype, self.offset, self.shape, self.stride

    def as_parameter(self) -> PickledTensor:
        """The same tensor, marked as a parameter."""
        return replace(self, parameter=True)

    def outline(self) -> Tensor:
        """The tensor on the meta device."""
        self._check_shape()
        return torch.empty(self.shape, dtype=self.dtype, device="meta")

    def read(self) -> Tensor:
        """Read the tensor, mapped from the file if possible.

        Raises:
            UnreadableTensor: it is damaged, has no values, or would be much larger than the stored numbers.
        """
        if self.reason:
            raise UnreadableTensor(self.reason)
        self._check_shape()
        if self.parts is not None:
            return self._dense(*self.parts)
        if self.storage is None:
            return self.outline()
        self._check_bounds(self.storage)
        numbers = self.storage.file.numbers(self.storage.key, self.storage.dtype, self.storage.length)
        numbers = numbers if self.dtype == self.storage.dtype else numbers.view(self.dtype)
        tensor = numbers.as_strided(self.shape, self.stride, self.offset)
        tensor = tensor.conj() if "conj" in self.flags else tensor
        return torch._neg_view(tensor) if "neg" in self.flags else tensor

    def _check_shape(self) -> None:
        small = len(self.shape) <= MOST_DIMENSIONS and all(0 <= size < 2**62 for size in self.shape)
        if not small or math.prod(self.shape) >= 2**62:
            raise UnreadableTensor("damaged: its shape is none that a tensor can have")

    def _check_bounds(self, storage: Storage) -> None:
        numel, available = math.prod(self.shape), storage.length * storage.dtype.itemsize // self.dtype.itemsize
        steps = (*self.stride, self.offset)
        if len(self.stride) != len(self.shape) or not all(0 <= step < 2**62 for step in steps):
            raise UnreadableTensor("damaged: its strides do not fit its shape")
        last = self.offset + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        if numel and last >= available:
            raise UnreadableTensor(f"damaged: it reaches beyond the {available} numbers of its storage")
        if numel > max(available, _SMALL):
            raise UnreadableTensor(f"it repeats {available} stored numbers {numel} times over: save its `.clone()`")

    def _dense(self, layout: str, parts: tuple[Any, ...]) -> Tensor:
        numel = math.prod(self.shape)
        if numel * self.dtype.itemsize > LARGEST_DENSE:
            raise UnreadableTensor(f"sparse, and dense larger than {LARGEST_DENSE >> 20} MiB")
        tensors = [part.read() for part in parts if isinstance(part, PickledTensor)]
        if numel > max(_MOST_ZEROS * tensors[-1].numel(), _SMALL):
            raise UnreadableTensor(f"sparse, with {tensors[-1].numel()} of {numel} numbers: save its `.to_dense()`")
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="Sparse .* is in beta", category=UserWarning)
                return _made_dense(layout, tensors, self.shape)
        except (RuntimeError, TypeError, ValueError) as error:
            raise UnreadableTensor("damaged: its indices do not fit its shape") from error


def _made_dense(layout: str, tensors: list[Tensor], shape: tuple[int, ...]) -> Tensor:
    if layout == "sparse_coo":
        indices, values = tensors
        return torch.sparse_coo_tensor(indices, values, shape, check_invariants=True).to_dense()
    compressed, plain, values = tensors
    kind: torch.layout = getattr(torch, layout)
    return torch.sparse_compressed_tensor(
        compressed, plain, values, shape, layout=kind, check_invariants=True
    ).to_dense()


OTHER_BYTE_ORDER = {"little": "big", "big": "little"}[sys.byteorder]
"""Name of the byte order that is not this machine's."""
