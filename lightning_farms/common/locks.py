"""Files that one process at a time works on."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, Any


def lock(file: IO[Any] | int, *, wait: bool = False) -> bool:
    """Lock an open file until it is closed, or until the process ends, also one that is killed.

    Args:
        file: open for writing: the file, or its descriptor.
        wait: until no other has it.

    Returns:
        False where another has it: another process, or another opening of the file in this one. True also where there
        are no locks: on Windows, and on some file systems.

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
    """Tell whether an open file still has its name: another process may have removed or replaced it.

    Args:
        path: the name.
        file: the file, or its descriptor.
    """
    try:
        return os.path.samestat(path.stat(), os.fstat(file if isinstance(file, int) else file.fileno()))
    except FileNotFoundError:
        return False
