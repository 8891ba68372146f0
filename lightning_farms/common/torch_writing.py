"""Writing of files with torch.save, with the system's error if that fails."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, cast

import torch


def save_to(content: object, path: Path) -> None:
    """Write a file with ``torch.save``, whose own error on a full disk mentions only unexpected positions.

    Args:
        content: an object that ``torch.save`` accepts.
        path: path of the file.

    Raises:
        OSError: the file cannot be written; this is the system's own error.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_to({"a": torch.ones(2)}, Path(folder) / "a.pt")
        ...     torch.load(Path(folder) / "a.pt")
        {'a': tensor([1., 1.])}
    """
    with path.open("wb", buffering=0) as raw:
        file = _Noting(cast("BinaryIO", raw))
        try:
            torch.save(content, cast("BinaryIO", file))
        except RuntimeError:
            if file.error is None:
                raise
            raise file.error from None


class _Noting:
    """A file that records the first error of writing to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        left = memoryview(content).cast("B")
        size = len(left)
        try:
            while left:  # a disk that fills up accepts only a part
                left = left[self._file.write(left) :]
        except OSError as error:
            self.error = self.error or error
            raise
        return size

    def flush(self) -> None:
        self._file.flush()
