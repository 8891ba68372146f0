"""Checks of the places that a subcommand is going to write to, before the work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable
from errno import EACCES, EROFS
from pathlib import Path

from lightning_farms.cli._shell import say
from lightning_farms.common.checkpoints.files import WEIGHTS


def check_new_file(target: Path, *, overwrite: bool) -> None:
    """Refuse a target that exists, unless it may be replaced, or that cannot be written."""
    if target.exists() and not target.is_dir() and not overwrite:
        raise FileExistsError(
            f"Expected OUT to be a new file, but {str(target)!r} exists. Give --overwrite to replace it."
        )
    check_file(target, "OUT")


def check_file(target: Path, called: str, inputs: Iterable[Path] = ()) -> None:
    """Refuse a file that cannot be written or that is one of the inputs, and tell if its folder has to be made.

    Args:
        target: the file.
        called: what it is called on the command line.
        inputs: files, or folders of weights, that are read.
    """
    if target.is_dir():
        raise IsADirectoryError(f"Expected {called} to be a file, but {str(target)!r} is a folder.")
    for path in inputs:
        if target.exists() and path.exists() and (target.samefile(path) or _holds(path, target)):
            raise ValueError(
                f"Expected {called} to be another file than the weights and texts that are read, but {str(target)!r} "
                "is one of them."
            )
    if target.exists():
        _check_writable(target, called)
    if target.is_file() or not target.exists():  # not a pipe or a device
        check_folder(target.parent, f"the folder of {called}")


def check_folder(folder: Path, called: str) -> None:
    """Refuse a folder that cannot be written to, and tell if it has to be made."""
    there = next(path for path in (folder, *folder.parents) if os.path.lexists(path))
    if not there.is_dir():
        what = "a file" if there == folder else f"in {str(there)!r}, which is a file"
        raise NotADirectoryError(f"Expected {called} to be a folder, but {str(folder)!r} is {what}.")
    _check_writable(there, called)
    if there != folder:
        say(f"{called[0].upper()}{called[1:]}, {str(folder)!r}, is not there, and will be made.")


def _holds(folder: Path, file: Path) -> bool:
    """Whether a folder of weights holds a file of weights."""
    return folder.is_dir() and file.name.endswith(WEIGHTS) and file.resolve().parent == folder.resolve()


def _check_writable(path: Path, called: str) -> None:
    if not os.access(path, os.W_OK | (os.X_OK if path.is_dir() else 0)):
        read_only = hasattr(os, "statvfs") and os.statvfs(path).f_flag & os.ST_RDONLY
        reason = os.strerror(EROFS if read_only else EACCES)
        raise PermissionError(
            f"Expected {called} to be a place that can be written to, but {str(path)!r} cannot: {reason}."
        )
