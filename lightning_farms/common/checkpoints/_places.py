"""Check of which files belong to a folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

METADATA = ".metadata"
"""Name of the metadata file in a folder of torch.distributed.checkpoint."""

CACHE = re.compile(r"models--.+")
"""Names of models' folders in the Hugging Face cache."""


def within(folder: Path, file: Path) -> Path:
    """Return the file unless a link leads out of the folder, or out of the cache that the folder is in.

    Raises:
        ValueError: the file is elsewhere.
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
    """The model's folder in the Hugging Face cache to which a folder belongs, if any."""
    place = folder.resolve()
    for parent in (place, *place.parents):
        if CACHE.fullmatch(parent.name) and (parent / "blobs").is_dir():
            yield parent
