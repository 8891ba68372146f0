"""Freezing of parameters by patterns of their names."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from lightning.pytorch import Callback
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch import nn

from lightning_farms.common.texts import listed

_SHOWN = 8


class Frozen(Callback):
    """Saves the patterns of frozen parameters in checkpoints, and warns if a training is resumed with others."""

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = list(patterns)

    def state_dict(self) -> dict[str, Any]:
        """Return the patterns, or nothing if nothing is frozen."""
        return {"patterns": self.patterns} if self.patterns else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Warn if a checkpoint's patterns differ."""
        if sorted(state_dict["patterns"]) != sorted(self.patterns):
            rank_zero_warn(
                f"The checkpoint was trained with `--freeze {state_dict['patterns']}`, but this training goes on with "
                f"{self.patterns}. Give the former, unless you mean the change."
            )


def freeze(model: nn.Module, patterns: Sequence[str]) -> None:
    """Freeze all parameters that match a pattern; each pattern must match some, and some must remain to train."""
    parameters = dict(model.named_parameters())
    frozen: set[str] = set()
    for pattern in patterns:
        matching = {name for name in parameters if fnmatchcase(name, pattern)}
        if not matching:
            raise ValueError(
                f"Expected argument `freeze` to match parameters, but {pattern!r} matches none of these: "
                f"{listed(parameters, _SHOWN)}."
            )
        frozen |= matching
    if patterns and not any(value.requires_grad for name, value in parameters.items() if name not in frozen):
        raise ValueError(f"Expected argument `freeze` to leave parameters to train, but {list(patterns)} match all.")
    for name in frozen:
        parameters[name].requires_grad_(False)
    if frozen:
        rank_zero_info(f"Frozen: {len(frozen)} of {len(parameters)} parameters ({', '.join(patterns)})")
