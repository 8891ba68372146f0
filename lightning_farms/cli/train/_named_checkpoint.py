"""The meaning of `--ckpt_path last` and `best` to a command, which knows earlier trainings only by their files."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint
from lightning.pytorch.utilities import rank_zero_warn

_REMEDY = "give its file, such as `--ckpt_path runs/.../{}.ckpt`."


def check_named(trainer: Trainer, name: str | None, subcommand: str) -> str | None:
    """Return the name, or None for a `fit` that finds no "last"; refuse "best", and a missing "last" elsewhere."""
    if name == "best":
        raise ValueError(
            f"Expected argument `ckpt_path` to be a file, or 'last', but got 'best': `{subcommand}` does not know "
            f"which checkpoint of an earlier training was its best. Instead, {_REMEDY.format('best')}"
        )
    if name != "last" or _has_last(trainer):
        return name
    where = (
        "the folder that this run's checkpoints go to, where Lightning looks for it, has no file whose name begins "
        "with 'last' (a logger that numbers its runs has a new folder for each)"
    )
    if subcommand == "fit":
        rank_zero_warn(
            f"`--ckpt_path last` finds no checkpoint: {where}. This training starts anew. To go on with an earlier one "
            f"instead, {_REMEDY.format('last')}"
        )
        return None
    raise ValueError(
        f"Expected argument `ckpt_path` to name a checkpoint, but 'last' finds none, and random weights would be "
        f"used: {where}. Instead, {_REMEDY.format('last')}"
    )


def _has_last(trainer: Trainer) -> bool:
    """Whether Lightning finds a last checkpoint."""
    callbacks = trainer.callbacks  # type: ignore[attr-defined]
    return any(
        (isinstance(each, ModelCheckpoint) and bool(each._find_last_checkpoints(trainer)))
        or (isinstance(each, OnExceptionCheckpoint) and Path(each.ckpt_path).exists())
        for each in callbacks
    )
