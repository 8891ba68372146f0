"""Opening a checkpoint, with messages on stderr about what was taken and what was left out."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.cli._shell import say
from lightning_farms.common.checkpoints.files import listed_state_dicts, read_stored

_SHOWN = 5
_SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")


def open_aloud(path: Path, key: str | None, *, check: bool, dequantize: bool = False) -> Mapping[str, Tensor]:
    """Read a checkpoint's tensors, and tell the user what was taken and left out."""
    stored = read_stored(path, key=key, check=check, dequantize=dequantize, may_be_empty=False)
    shard = _SHARD.search(path.name)
    if shard and path.is_file():
        say(f"{path.name} is one of {int(shard[1])} shards: give the folder, or the index, for all of them.")
    if stored.others:
        taken = f"`{stored.taken}`" if stored.taken else "the top level"
        say(f"Taken from {path.name}: {taken}. Also there: {listed_state_dicts(stored.others)}; choose with --key.")
    if stored.left_out:
        listed = _listed([f"{name} ({count})" if count > 1 else name for name, count in stored.left_out.items()])
        say(f"Left out of {path.name}, as to read it could run code: {listed}.")
    if stored.sparse:
        say(f"Stored sparse in {path.name}, made dense: {_listed(stored.sparse)}.")
    return stored.tensors


def say_unreadable(weights: Sequence[LayerWeight]) -> None:
    """Tell the user which layers could not be read."""
    if weights:
        listed = _listed([f"{weight.name} ({weight.reason})" for weight in weights])
        say(f"Could not be read ({len(weights)}): {listed}.")


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f", and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
