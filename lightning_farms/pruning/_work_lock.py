"""Lock that lets only one process at a time work in a folder of unfinished work."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path
from weakref import WeakValueDictionary, finalize

from lightning_farms.common.locks import is_at, lock

LOCK = ".lock"
"""Name of the locked file."""


class WorkLock:
    """The lock of a folder, held for as long as the object lives; it is freed when the process ends or is killed.

    Raises:
        BlockingIOError: another process holds it.
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / LOCK
        self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
        self._close = finalize(self, os.close, self._descriptor)
        if not lock(self._descriptor):
            self._close()
            holder = self._path.read_text(encoding="utf-8").strip()
            raise BlockingIOError(
                f"Expected one process at a time to work in {str(folder)!r}, but another one does"
                f"{f' ({holder})' if holder else ''}. Wait until it has ended, or take another OUT."
            )
        self._path.write_text(f"process {os.getpid()} of {platform.node()}", encoding="utf-8")

    def holds(self) -> bool:
        """Whether the folder is still the one that was locked."""
        return self._close.alive and is_at(self._path, self._descriptor)

    def release(self, folder: Path) -> None:
        """Release the lock of a folder, which may have been renamed since."""
        (folder / LOCK).unlink(missing_ok=True)
        self._close()


_HELD: WeakValueDictionary[Path, WorkLock] = WeakValueDictionary()


def work_lock(folder: Path) -> WorkLock | None:
    """Lock a folder; a folder that this process has already locked is not locked against itself.

    None on Windows, where a folder with an open file in it cannot be renamed.

    Raises:
        BlockingIOError: another process has locked it.
    """
    if sys.platform == "win32":
        return None
    known = _HELD.get(folder.resolve())
    if known is None or not known.holds():
        known = _HELD[folder.resolve()] = WorkLock(folder.resolve())
    return known
