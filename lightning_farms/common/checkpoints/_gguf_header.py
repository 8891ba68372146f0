"""Header of a GGUF file, which tells where its tensors lie; no number in it is trusted beyond the file's size.

The package's own reader makes an object for every entry of every list, and trusts the numbers.
"""

from __future__ import annotations

import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from lightning_farms.common.checkpoints._inert_pickle import PickleError

_SIZES = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}  # bytes of a number, by type
_TEXT, _LIST, _UINT32 = 8, 9, 4
_MOST_STEPS = 2**24  # texts and entries of all lists: the largest vocabularies have some hundred thousand
_MOST_DIMENSIONS = 4
_DEEPEST = 4
_MOST_ALIGNMENT = 2**16
_VERSIONS = (2, 3)


class GGUFTensor(NamedTuple):
    """A tensor: its name, its shape in PyTorch's order, the number of its type, and the start of its bytes."""

    name: str
    shape: tuple[int, ...]
    type: int
    start: int


class GGUFHeader(NamedTuple):
    """A file mapped into memory, and its tensors in the order of the header; ``swapped`` means the other byte order.

    Each tensor begins at a multiple of ``alignment`` bytes, and is padded to such a multiple.
    """

    content: mmap.mmap
    tensors: tuple[GGUFTensor, ...]
    swapped: bool
    alignment: int


def read_header(path: Path) -> GGUFHeader:
    """Read the header.

    Raises:
        PickleError: it is damaged, cut short, or of an unknown version.
    """
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    try:
        scan = _Scan(content)
        tensors = tuple(scan.tensors())
    except struct.error as error:
        raise PickleError("its header is cut short") from error
    if len({tensor.name for tensor in tensors}) < len(tensors):
        raise PickleError("its header names a tensor twice")
    return GGUFHeader(content, tensors, scan.swapped, scan.alignment)


class _Scan:
    """Reads the header from a position that moves on."""

    def __init__(self, content: mmap.mmap) -> None:
        self._content = content
        self._position = len(b"GGUF")
        self._steps = 0
        self._order = "<"
        self.alignment = 32
        version = self._number("I")
        if version not in _VERSIONS:
            self._order, self._position = ">", len(b"GGUF")
            version = self._number("I")
        if version not in _VERSIONS:
            raise PickleError("it is of a version of GGUF that is not known")
        self.swapped = self._order == ">"

    def tensors(self) -> Iterator[GGUFTensor]:
        """The tensors, which follow the pairs of names and values; of these only the alignment is read."""
        count, pairs = self._number("Q"), self._number("Q")
        alignment = self.alignment
        for _ in range(pairs):
            name, kind = self._text(), self._number("I")
            if name != "general.alignment":
                self._skip(kind)
            elif kind == _UINT32:
                alignment = self._number("I")
            else:
                raise PickleError(f"its header has an alignment of type {kind}, which is no number of 4 bytes")
        if not 0 < alignment <= _MOST_ALIGNMENT or alignment.bit_count() > 1:
            raise PickleError(f"its header has an alignment of {alignment}")
        self.alignment = alignment
        found = [self._tensor() for _ in self._entries(count)]
        if any(tensor.start % alignment for tensor in found):
            raise PickleError(f"its header has a tensor that does not begin at a multiple of {alignment} bytes")
        start = math.ceil(self._position / alignment) * alignment
        return (tensor._replace(start=start + tensor.start) for tensor in found)

    def _tensor(self) -> GGUFTensor:
        name, dimensions = self._text(), self._number("I")
        if dimensions > _MOST_DIMENSIONS:
            raise PickleError(f"its header has a tensor of {dimensions} dimensions")
        shape = tuple(self._number("Q") for _ in range(dimensions))[::-1]
        return GGUFTensor(name, shape, self._number("I"), self._number("Q"))

    def _number(self, code: str) -> int:
        [value] = struct.unpack_from(f"{self._order}{code}", self._content, self._position)
        self._position += struct.calcsize(code)
        return int(value)

    def _text(self) -> str:
        length = self._number("Q")
        start = self._position
        self._move(length)
        if length > 2**16:
            raise PickleError(f"its header has a name of {length} letters")
        text = self._content[start : self._position].decode("utf-8", errors="replace")
        return text if text.isprintable() else text.encode("unicode_escape").decode("ascii")

    def _entries(self, count: int) -> range:
        self._steps += count
        if self._steps > _MOST_STEPS:
            raise PickleError(f"its header has more than {_MOST_STEPS} entries")
        return range(count)

    def _skip(self, kind: int, depth: int = 0) -> None:
        if kind in _SIZES:
            self._move(_SIZES[kind])
        elif kind == _TEXT:
            self._move(self._number("Q"))
        elif kind == _LIST and depth < _DEEPEST:
            within, count = self._number("I"), self._number("Q")
            if within in _SIZES:
                self._move(_SIZES[within] * count)
                return
            for _ in self._entries(count):
                self._skip(within, depth + 1)
        else:
            raise PickleError(f"its header has a value of type {kind}")

    def _move(self, length: int) -> None:
        self._position += length
        if self._position > len(self._content):
            raise PickleError("its header is cut short")
