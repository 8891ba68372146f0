"""Writing of files that appear complete or not at all."""

import os
import re
import sys
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EDQUOT, EFBIG, EISDIR, ENOSPC, EROFS
from pathlib import Path

_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_OF_ROOM = (ENOSPC, EDQUOT, EFBIG, EROFS)
_LONGEST = 200  # bytes of a file's name that are used in the name of its draft
_SYSTEM_ERROR = re.compile(r"errno = (\d+)")  # in HDF5's messages
_ABANDONED = 24 * 3600  # seconds since the last write to a draft after which it counts as abandoned


@contextmanager
def complete_or_nothing(path: Path) -> Iterator[Path]:
    """Yield a temporary path in the same folder, and move the file into place if the block ends without an error.

    The file is on disk before it gets its name; an existing one is replaced (if a link leads to it, the link stays).
    After an error there is no new file, and an earlier one is as it was. If the path is not a regular file (but a pipe,
    or a device such as ``/dev/stdout``), it is written to directly.
    A process that is killed leaves its draft behind, `.NAME.<32 hexadecimal digits>.tmp`; drafts in the folder that
    nobody has written to for a day are removed.

    Args:
        path: the file's name; its folder is created if necessary.

    Yields:
        The path to write to.

    Raises:
        UnwrittenFileError: the file cannot be written: a full disk, a quota, no permission, a folder of that name.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with complete_or_nothing(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("all of it")
        ...     os.listdir(folder)
        ['a.txt']
    """
    if path.exists() and not path.is_file() and not path.is_dir():
        yield path
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{shortened(target.name, _LONGEST)}.{uuid.uuid4().hex}.tmp")
    try:
        if target.is_dir():
            raise IsADirectoryError(EISDIR, os.strerror(EISDIR), str(target))
        target.parent.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(target.parent)
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, target)
    except OSError as error:
        if _is_of(error, target, temporary):
            raise UnwrittenFileError(path, error) from error
        raise
    except RuntimeError as error:  # so HDF5 tells that it could not write the rest when the file is closed
        found = _SYSTEM_ERROR.search(str(error))
        if found is not None and int(found[1]) in _OF_ROOM:
            raise UnwrittenFileError(path, OSError(int(found[1]), str(error))) from error
        raise
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text to a file, completely or not at all."""
    with complete_or_nothing(path) as draft:
        draft.write_text(text, encoding="utf-8", newline="")


class UnwrittenFileError(OSError):
    """Raised if a file could not be written; an earlier one of its name is as it was.

    Args:
        path: path of the file.
        error: the original error.
    """

    def __init__(self, path: str | os.PathLike[str], error: OSError) -> None:
        super().__init__(os.fspath(path), error)
        self.path, self.error = os.fspath(path), error
        self.errno = error.errno

    def __str__(self) -> str:
        reason = self.error.strerror or str(self.error)
        system = os.strerror(self.errno) if self.errno else reason
        reason = system if system in reason else reason  # h5py's messages have much around the reason
        return (
            f"Expected {self.path!r} to be a file that can be written, but writing failed: {reason}. Nothing was "
            "changed there."
        )


def shortened(name: str, most: int) -> str:
    """Shorten a file's name to at most ``most`` bytes (a file system allows 255), in whole characters.

    Example:
        >>> shortened("größer", 4)
        'grö'
    """
    return os.fsencode(name)[:most].decode(sys.getfilesystemencoding(), "ignore")


def _is_of(error: OSError, target: Path, temporary: Path) -> bool:
    """Whether an error comes from writing this file, not from reading another one meanwhile."""
    named = {str(temporary), str(target), *map(str, target.parents)}
    return error.errno in _OF_ROOM or error.filename is None or os.fspath(error.filename) in named


def _remove_abandoned(folder: Path) -> None:
    for draft in folder.glob(".*.tmp"):
        with suppress(OSError):  # another process may have been faster
            if _DRAFT.fullmatch(draft.name) and time.time() - draft.stat().st_mtime > _ABANDONED:
                draft.unlink()


def _flush_to_disk(path: Path) -> None:
    descriptor = os.open(path, os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
