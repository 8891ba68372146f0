"""Check of the free space on a disk, before a file is written."""

from __future__ import annotations

import shutil
from errno import ENOSPC
from pathlib import Path

from lightning_farms.common.quantities import size_text


def check_room(path: Path, size: int, what: str, remedy: str) -> None:
    """Raise OSError (no space left) if there is no room for a file of this size in its folder, which has to exist.

    Args:
        path: path of the file.
        size: size in bytes.
        what: description of the content for the message.
        remedy: remedy for the message, besides making room.
    """
    free = shutil.disk_usage(path.parent).free
    if free < size:
        room = f"{what} take {size_text(size)}, but only {size_text(free)} are free in {path.parent}"
        raise OSError(ENOSPC, f"{room}: make room, or {remedy}")
