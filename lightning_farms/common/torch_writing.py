"""Files of torch.save, and what the disk says where they cannot be written."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO, cast

import torch


def save_to(content: object, path: Path) -> None:
    """Write a file as ``torch.save`` does, which tells nothing of a full disk but that positions are unexpected.

    Args:
        content: what ``torch.save`` takes.
        path: of the file.

    Raises:
        OSError: it cannot be written, by what the system says.

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
    """A file that notes the first error of writing to it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        left = memoryview(content).cast("B")
        size = len(left)
        try:
            while left:  # a disk that fills up takes a part
                left = left[self._file.write(left) :]
        except OSError as error:
            self.error = self.error or error
            raise
        return size

    def flush(self) -> None:
        self._file.flush()
