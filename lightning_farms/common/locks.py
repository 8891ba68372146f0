"""Locks on files, for work by one process at a time."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any


def lock(file: IO[Any] | int, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed, or until the process ends or is killed.

    Args:
        file: a file opened for writing, or its descriptor.
        wait: whether to wait until no one else holds the lock.

    Returns:
        False if the lock is held by another process, or by another open handle on the file in this one. True also where
        there are no locks: on Windows, and on some file systems.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as one, open(one.name, "ab") as other:
        ...     lock(one), lock(other)
        (True, False)
    """
    if sys.platform == "win32":
        return True
    import fcntl

    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return True
    return True


def is_at(path: Path, file: IO[Any] | int) -> bool:
    """Whether an open file is still at its path: another process may have removed or replaced it.

    Args:
        path: the path.
        file: the file, or its descriptor.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(file if isinstance(file, int) else file.fileno()))
    except FileNotFoundError:
        return False
