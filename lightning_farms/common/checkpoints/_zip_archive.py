"""Places and contents of the records of a zip archive; no size that it claims is trusted."""

from __future__ import annotations

import mmap
import os
import struct
import zipfile
from collections.abc import Mapping
from copy import copy
from functools import partial

from lightning_farms.common.checkpoints._inert_pickle import PickleError
from lightning_farms.common.checkpoints.pickled_tensor import Entry

MOST_DIRECTORY = 2**25
"""Longest directory that is read, in bytes: some 400,000 records."""

MOST_UNPACKED = 2**29
"""Largest size in bytes up to which a compressed record is unpacked; torch.save compresses none."""

_PIECE = 2**20
_DEFLATE_PACKS = 1032  # largest compression factor of deflate
_LOCAL_HEADER = struct.Struct("<4sHHHHHLLLHH")
_SIGNATURE = b"PK\x03\x04"
_LATER = 0x8  # flag: sizes and CRC-32 follow the data
_UTF8 = 0x800
_IN_ZIP64 = 0xFFFFFFFF
_Content = mmap.mmap | bytearray


class ZipArchive:
    """The records of an archive in memory, or mapped into it.

    Raises:
        PickleError: the directory is damaged, or names a record twice.
    """

    def __init__(self, content: _Content) -> None:
        self._content = content
        self._file = _View(content)
        try:
            self._archive = zipfile.ZipFile(self._file)
        except Exception as error:  # a damaged directory can fail in any way
            raise PickleError("its zip directory cannot be read") from error
        self._file.most = len(content)
        infos = self._archive.infolist()
        self.records: Mapping[str, zipfile.ZipInfo] = {info.filename: info for info in infos}
        if len(self.records) < len(infos):
            raise PickleError("its zip directory names a record twice")
        self._has_crcs = any(info.CRC for info in infos)  # False after torch.serialization.set_crc32_options(False)

    def read(self, name: str, most: int) -> bytes:
        """Read and unpack a record, comparing its CRC-32 if the archive has these."""
        info = self.records[name]
        if fault := self._fault(info):
            raise PickleError(f"its {name!r} is damaged: {fault}")
        return bytes(self._unpacked(info, most))

    def entry(self, name: str) -> Entry:
        """The place of a storage's numbers, or why they cannot be read."""
        info = self.records[name]
        crc = info.CRC if self._has_crcs else None
        if fault := self._fault(info):
            return Entry(0, 0, fault=fault)
        if info.compress_type != zipfile.ZIP_STORED:
            size = min(info.file_size, _DEFLATE_PACKS * info.compress_size + 1024)
            return Entry(0, size, crc, partial(self._unpacked, info, MOST_UNPACKED))
        return Entry(self._start(info), info.file_size, crc)

    def _start(self, info: zipfile.ZipInfo) -> int:
        *_, name, extra = _LOCAL_HEADER.unpack(self._header(info))
        return int(info.header_offset + _LOCAL_HEADER.size + name + extra)

    def _header(self, info: zipfile.ZipInfo) -> bytes:
        start = max(info.header_offset, 0)
        return bytes(self._content[start : start + _LOCAL_HEADER.size])

    def _fault(self, info: zipfile.ZipInfo) -> str:
        """The fault in the header before a record, which agrees with the directory in a sound archive."""
        header = self._header(info)
        if info.header_offset < 0 or len(header) < _LOCAL_HEADER.size:
            return "it lies beyond the end of the file"
        signature, _, flags, method, _, _, crc, packed, size, length, _ = _LOCAL_HEADER.unpack(header)
        start = info.header_offset + _LOCAL_HEADER.size
        name = bytes(self._content[start : start + length]).decode("utf-8" if flags & _UTF8 else "cp437", "replace")
        if signature != _SIGNATURE or name != info.orig_filename or method != info.compress_type:
            return "the zip directory does not fit what it names"
        if method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            return "it is compressed by a method that is not read"
        known = not flags & _LATER and _IN_ZIP64 not in (packed, size)
        if known and (crc, packed, size) != (info.CRC, info.compress_size, info.file_size):
            return "the zip directory does not fit what it names"
        if self._start(info) + info.compress_size > len(self._content):
            return "it is cut short"
        return ""

    def _unpacked(self, info: zipfile.ZipInfo, most: int) -> bytearray:
        name = info.filename
        if info.file_size > most:
            raise PickleError(f"its {name!r} claims {info.file_size} bytes")
        if not self._has_crcs:
            info = copy(info)
            del info.CRC
        content = bytearray()
        try:
            with self._archive.open(info) as record:
                while len(content) <= most and (piece := record.read(_PIECE)):
                    content += piece
        except zipfile.BadZipFile as error:
            raise PickleError(f"its {name!r} is damaged: {error}") from error
        except Exception as error:  # a damaged compressed stream
            raise PickleError(f"its {name!r} cannot be unpacked") from error
        if len(content) != info.file_size:
            raise PickleError(f"its {name!r} is cut short")
        return content


def record_names(path: str | os.PathLike[str]) -> tuple[str, ...]:
    """The names of an archive's records; empty if the file is not an archive, or not a readable one."""
    with open(path, "rb") as file:
        if os.fstat(file.fileno()).st_size == 0:
            return ()
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            try:
                return tuple(ZipArchive(content).records) if is_zip(content) else ()
            except PickleError:
                return ()


def is_zip(content: _Content) -> bool:
    """Whether the content has the end record of a zip archive."""
    try:
        return zipfile.is_zipfile(_View(content))
    except zipfile.BadZipFile:  # an archive on several disks
        return True


class _View:
    """Content as a file whose single reads are limited to `most` bytes, as a directory may claim to have terabytes."""

    def __init__(self, content: _Content) -> None:
        self._content = content
        self._position = 0
        self.most = MOST_DIRECTORY

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: len(self._content)}[whence]
        if start + offset < 0:
            raise OSError("before the start")
        self._position = start + offset
        return self._position

    def read(self, size: int = -1) -> bytes:
        left = max(len(self._content) - self._position, 0)
        wanted = left if size < 0 else min(size, left)
        if wanted > self.most:
            raise zipfile.BadZipFile(f"a directory of {wanted} bytes")
        found = bytes(self._content[self._position : self._position + wanted])
        self._position += wanted
        return found
