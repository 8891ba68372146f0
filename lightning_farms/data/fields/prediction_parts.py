"""Parts of predictions that an interrupted run has left: where they are, and what is in them."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lightning_farms.common.parameters import local
from lightning_farms.data.fields.prediction_file import PredictionPart


def part_path(target: Path, number: int) -> Path:
    """Return the path at which the part of a process is kept.

    Args:
        target: the file of predictions that is to be written.
        number: number of the process.

    Returns:
        The path, beside the file.

    Example:
        >>> part_path(Path("predictions.hdf5"), 0).name
        'predictions.hdf5.0.part'
    """
    return target.with_name(f"{target.name}.{number}.part")


def parts_of(target: Path) -> list[Path]:
    """Find all parts of a file of predictions.

    Args:
        target: the file of predictions that is to be written.

    Returns:
        Their paths, the first process's first.
    """
    found = {path.name.removeprefix(f"{target.name}.").removesuffix(".part"): path for path in _named(target)}
    return [found[number] for number in sorted(filter(str.isdecimal, found), key=int)]


def done_items(target: Path, settings: Mapping[str, Any], *, overwrite: bool) -> list[int]:
    """Return the trajectories that an interrupted prediction has finished.

    Args:
        target: the file of predictions that is to be written.
        settings: all that the predictions depend on, in plain values.
        overwrite: whether to remove parts with other settings instead of refusing them.

    Returns:
        Their places in the data set, ascending.

    Raises:
        FileExistsError: if a part has other settings.
        BlockingIOError: if another process writes a part.
        OSError: if a part cannot be read.
    """
    done: set[int] = set()
    for path in parts_of(target):
        part = PredictionPart(path)
        part.close()
        differing = [name for name in settings if part.settings.get(name) != settings[name]]
        if not differing:
            done |= set(part.done)
        elif overwrite:
            path.unlink()
        else:
            raise FileExistsError(
                f"Expected the unfinished predictions in {path} to be of the same flows, weights and settings, so that "
                f"they can be gone on with, but these differ: {', '.join(differing)}. Repeat the command that they "
                "were begun with, or remove the file, give another `path` or set `overwrite=True`."
            )
    return sorted(done)


def digest_of(module: nn.Module) -> str:
    """Return a digest that identifies a module's weights.

    Args:
        module: a module with any parameters and buffers; of sharded ones, only this process's share counts.

    Returns:
        32 hexadecimal digits, equal for equal weights.
    """
    digest = hashlib.blake2b(digest_size=16)
    for name, value in sorted(module.state_dict().items()):
        if isinstance(value, Tensor):
            own = local(value)
            digest.update(f"{name} {own.dtype} {tuple(own.shape)}".encode())
            digest.update(own.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _named(target: Path) -> list[Path]:
    return list(target.parent.glob(f"{_escaped(target.name)}.*.part")) if target.parent.is_dir() else []


def _escaped(name: str) -> str:
    return "".join(f"[{letter}]" if letter in "*?[" else letter for letter in name)
