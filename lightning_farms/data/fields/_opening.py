"""Opening HDF5 files and reading from them: each error with its own remedy, and a bounded number of handles."""

import errno
import os
import re
import stat
import weakref
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

import h5py

_MOST_OPEN = 64
_ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")
_REMEDIES: dict[int, tuple[type[OSError], str]] = {
    errno.EAGAIN: (
        BlockingIOError,
        "another process has it open for writing: wait until it is closed, or read a copy. On a file system "
        "without locks, set the environment variable HDF5_USE_FILE_LOCKING to FALSE",
    ),
    errno.EACCES: (
        PermissionError,
        "this user has no permission to read it: ask its owner for it (chmod), or run as another user",
    ),
    errno.EMFILE: (OSError, "too many files are open: raise the limit (`ulimit -n`), or use fewer files or workers"),
    errno.EIO: (OSError, "the disk or the network failed: try again, and look at the system's log"),
}
_REMEDIES[errno.EWOULDBLOCK] = _REMEDIES[errno.EAGAIN]
_REMEDIES[errno.EPERM] = _REMEDIES[errno.EACCES]
_REMEDIES[errno.ENFILE] = _REMEDIES[errno.EMFILE]
for _number in (errno.ESTALE, errno.ETIMEDOUT, errno.ENODEV, errno.ENXIO):
    _REMEDIES[_number] = _REMEDIES[errno.EIO]
_SIGNATURE = b"\x89HDF\r\n\x1a\n"
_UNPACK = "compressed ({}): unpack it first"
_WEB_PAGE = "a web page, sent by a server in place of the file: look at what it says, and download the file again"
_OTHER_FORMATS = {  # first bytes, in lower case
    b"version https://git-lfs": "only a Git LFS pointer to the file: fetch the file itself (`git lfs pull`)",
    b"<!doctype html": _WEB_PAGE,
    b"<html": _WEB_PAGE,
    b"\x1f\x8b": _UNPACK.format("gzip"),
    b"pk\x03\x04": _UNPACK.format("zip"),
    b"bzh": _UNPACK.format("bzip2"),
    b"\xfd7zxz": _UNPACK.format("xz"),
    b"(\xb5/\xfd": _UNPACK.format("Zstandard"),
    b"cdf": "a netCDF file of the classic format: convert it to netCDF-4, which is HDF5 (`nccopy -k nc4`)",
    b"\x93numpy": "a NumPy array: write it to an HDF5 file (h5py), a dataset for each field",
}


def check_local(path: str | os.PathLike[str]) -> None:
    """Refuse the address (URL) of a file that is not on this machine."""
    if _ADDRESS.match(os.fspath(path)) and not Path(path).exists():
        raise ValueError(
            f"Expected argument `path` to be a file on this machine, but got the address {os.fspath(path)}. Download "
            "it, or mount what holds it, and give the path."
        )


def open_hdf5(path: Path) -> h5py.File:
    """Open a file for reading."""
    check_local(path)
    try:
        kind = path.stat().st_mode
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise FileNotFoundError(
                f"Expected argument `path` to be an existing file, but found none at {path}."
            ) from error
        raise explained(path, error) from error
    if stat.S_ISDIR(kind):
        raise IsADirectoryError(f"Expected argument `path` to be an HDF5 file, but {path} is a folder.")
    if not stat.S_ISREG(kind):
        raise OSError(f"Expected argument `path` to be a regular file, but {path} is a pipe, socket or device.")
    with naming(path):
        try:
            return h5py.File(path, "r")
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE) or not OPEN_FILES.close_all():
                raise
            return h5py.File(path, "r")


class DamagedFlowError(OSError):
    """One trajectory of a file cannot be read; others may be."""


@contextmanager
def naming(path: Path, *, flow: str = "") -> Iterator[None]:
    """Make whatever h5py raises name the file and the flow: for a damaged file, it may be nearly any error."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:
        raise explained(path, error, flow) from error


def explained(path: Path, error: Exception, flow: str = "") -> OSError:
    """Return an error that says why a file, or a flow in it, cannot be opened or read, and what to do."""
    known = _REMEDIES.get(getattr(error, "errno", None) or 0)
    if known is not None:
        kind, remedy = known
        return kind(f"Expected {path} to be readable, but {remedy}. ({error})")
    if flow:
        return DamagedFlowError(
            f"Expected {flow} of {path} to be readable, but it is not ({error}). The file may be damaged there: "
            "compare its checksum with the source's and download it again, or leave the flow out (`skip`)."
        )
    begin = _begin(path)
    if begin.startswith(_SIGNATURE + b"\x03") and begin[11] & 1:
        return BlockingIOError(
            f"Expected {path} to be readable, but it is marked as being written ({error}): wait until its writer is "
            "done; if that was killed, remove the mark from a copy (`h5clear --status FILE`) and look whether it is "
            "complete (`lightning-farms check`)."
        )
    other = next((text for start, text in _OTHER_FORMATS.items() if begin.lstrip().lower().startswith(start)), None)
    if other is not None:
        return OSError(f"Expected {path} to be an HDF5 file, but it is {other}.")
    return OSError(
        f"Expected {path} to be a complete HDF5 file, but it cannot be read ({error}). It may be damaged, cut short or "
        "of another format: compare its size and checksum with the source's and download it again."
    )


def _begin(path: Path) -> bytes:
    """Return the first bytes of a file, none if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError:
        return b""


def missing_filters(dataset: h5py.Dataset) -> list[str]:
    """Return the filters of a dataset's chunks, such as compressions, that this installation does not have."""
    properties = dataset.id.get_create_plist()
    found = [properties.get_filter(number) for number in range(properties.get_nfilters())]
    return [f"{each[0]} ({each[3].decode(errors='replace')})" for each in found if not h5py.h5z.filter_avail(each[0])]


class _Closable(Protocol):
    def close(self) -> None: ...


class OpenFiles:
    """The files that this process has open; the least recently used one is closed if there are too many."""

    def __init__(self) -> None:
        self._open: OrderedDict[int, weakref.ref[_Closable]] = OrderedDict()
        self._most = most_open()

    def used(self, file: _Closable) -> None:
        """Note that a file is used, and make room for it."""
        key = id(file)
        if key in self._open:
            self._open.move_to_end(key)
            return
        self._most = most_open()
        while len(self._open) >= self._most:
            self._close(next(iter(self._open)))
        self._open[key] = weakref.ref(file)

    def closed(self, file: _Closable) -> None:
        """Note that a file is closed."""
        self._open.pop(id(file), None)

    def close_all(self) -> bool:
        """Close all files, and return whether there were any."""
        any_open = bool(self._open)
        for key in list(self._open):
            self._close(key)
        return any_open

    def _close(self, key: int) -> None:
        reference = self._open.pop(key, None)
        file = None if reference is None else reference()
        if file is not None:
            file.close()


def most_open() -> int:
    """Return how many files to keep open: at most 64, and at most a quarter of this process's limit."""
    try:
        import resource
    except ImportError:  # not on every system
        return _MOST_OPEN
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return _MOST_OPEN if allowed < 0 else max(1, min(_MOST_OPEN, allowed // 4))


OPEN_FILES = OpenFiles()
