"""Which files belong to a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

METADATA = ".metadata"
"""Of a folder of torch.distributed.checkpoint."""

CACHE = re.compile(r"models--.+")
"""Names of models' folders in the cache of Hugging Face."""


def within(folder: Path, file: Path) -> Path:
    """The file, if it is a regular one that no link takes out of the folder, or out of the cache that it is in.

    Raises:
        ValueError: it is elsewhere, or no file.
    """
    roots = [folder.resolve(), *_caches(folder)]
    target = Path(os.path.realpath(file))  # not resolve(), which raises for a link to itself
    if any(target.is_relative_to(root) for root in roots):
        return file
    raise ValueError(
        f"Expected the files of {str(folder)!r} to be in its folder, but {file.name!r} is a link to {str(target)!r}. "
        "If you trust it, give that file itself, or copy it."
    )


def _caches(folder: Path) -> Iterator[Path]:
    """The model's folder in the cache of Hugging Face that a folder is part of."""
    place = folder.resolve()
    for parent in (place, *place.parents):
        if CACHE.fullmatch(parent.name) and (parent / "blobs").is_dir():
            yield parent
