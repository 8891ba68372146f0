"""The files of a DeepSpeed ZeRO checkpoint."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

from lightning_farms.common.checkpoints._natural import natural

_WHOLE = re.compile(r"mp_rank_\d+_model_states\.pt")
_PARTITIONED = re.compile(r"zero_pp_rank_\d+_mp_rank_\d+_model_states\.pt")
_OPTIMIZER = re.compile(r"(bf16_)?zero_pp_rank_\d+_mp_rank_\d+_optim_states\.pt")


class ZeroFiles(NamedTuple):
    """The files of a checkpoint: the whole state of the model, or partitions of its state and of the optimizer's."""

    folder: Path
    whole: tuple[Path, ...]
    model: tuple[Path, ...]
    optimizer: tuple[Path, ...]


def zero_files(folder: Path) -> ZeroFiles | None:
    """The files of a ZeRO checkpoint in a folder, or in the subfolder that its file `latest` names, if there is one."""
    latest = folder / "latest"
    tag = first_words(latest) if latest.is_file() else ""
    below = [folder / tag] if tag and "/" not in tag and tag not in (".", "..") and "\0" not in tag else []
    for place in (folder, *below, folder / "checkpoint"):
        names = sorted((file.name for file in place.iterdir() if file.is_file()), key=natural) if place.is_dir() else []
        files = ZeroFiles(place, *(tuple(place / n for n in names if kind.fullmatch(n)) for kind in _KINDS))
        if files.whole or files.model:
            return files
    return None


def first_words(file: Path) -> str:
    """The text of a small file, or the start of a long one."""
    with file.open(encoding="utf-8", errors="replace") as text:
        return text.read(256).strip()


_KINDS = (_WHOLE, _PARTITIONED, _OPTIMIZER)
