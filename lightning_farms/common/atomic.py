"""Files that appear complete or not at all."""

import os
import re
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_DRAFT = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")
_ABANDONED = 24 * 3600  # seconds since the last write to a draft, after which nobody is thought to write it


@contextmanager
def complete_or_nothing(path: Path) -> Iterator[Path]:
    """Give a temporary path in the same folder; put the file in its place when the block ends without an error.

    The file is on disk before it gets its name; an existing one is replaced. After an error there is no new file.
    A process that is killed leaves its draft behind, `.NAME.<32 hexadecimal digits>.tmp`; drafts in the folder that
    nobody has written to for a day are removed.

    Args:
        path: the file's name; its folder is created if need be.

    Yields:
        The path to write to.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with complete_or_nothing(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("all of it")
        ...     os.listdir(folder)
        ['a.txt']
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _remove_abandoned(path.parent)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        yield temporary
        _flush_to_disk(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


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
