"""Folder in which downloaded and simulated data sets are kept."""

from __future__ import annotations

import os
from pathlib import Path


def user_cache() -> Path:
    """The folder lightning_farms in the user's cache folder: $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lightning_farms"
