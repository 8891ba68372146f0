"""Check of the file that a subcommand is going to write."""

from __future__ import annotations

from pathlib import Path


def check_target(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that exists, before the work is done; a folder is never replaced."""
    if target.is_dir() or (target.exists() and not overwrite):
        what = "is a folder" if target.is_dir() else "exists. Give --overwrite to replace it"
        raise FileExistsError(f"Expected OUT to be a new file, but {str(target)!r} {what}.")
