"""Whether fields to evaluate are like those that the weights were trained on, and are not rounded."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

_KEPT = {"channels", "normalize", "statistics"}  # keys of a data module's state


class DataOfTraining:
    """The channels that the weights were trained on, and their scaling, if a checkpoint tells them."""

    def __init__(self) -> None:
        self._state: Mapping[str, Any] | None = None
        self._told_rounded = False

    def remember(self, checkpoint: Mapping[str, Any]) -> None:
        """Take channels and scaling from a checkpoint."""
        states = (value for value in checkpoint.values() if isinstance(value, Mapping))
        self._state = next((state for state in states if state.keys() >= _KEPT), None)

    def forget(self) -> None:
        """Forget them, since a training on other data starts."""
        self._state = None

    def compare(self, trainer: Trainer | None, fields: Tensor) -> None:
        """Warn, once, if the data evaluated have other channels, are scaled differently, or are rounded."""
        if fields.dtype.itemsize < torch.float32.itemsize and not self._told_rounded and trainer is not None:
            self._told_rounded = True
            rank_zero_warn(
                f"The Trainer's precision {trainer.precision} rounds the data to {fields.dtype} before the network "
                "sees them, so that predictions and errors (also those of persistence) are those of rounded fields. "
                "Use precision `bf16-mixed` or `32-true`."
            )
        if self._state is None or trainer is None or trainer.state.fn == TrainerFn.FITTING:
            return
        state, self._state = self._state, None
        data = getattr(trainer, "datamodule", None)
        denormalize = getattr(data, "denormalize", None)
        if denormalize is None:
            return
        channels = list(getattr(data, "channels", state["channels"]))
        same = channels == list(state["channels"])
        if same:
            unit = torch.stack((torch.zeros(len(channels)), torch.ones(len(channels))))
            statistics = state["statistics"]
            trained = unit if statistics is None else unit * statistics["std"].float() + statistics["mean"].float()
            same = bool(torch.allclose(denormalize(unit), trained, rtol=1e-3, atol=1e-6))
        if not same:
            rank_zero_warn(
                f"The weights were trained on the channels {list(state['channels'])}, but the data module gives "
                f"{channels}, or scales them by other constants (`normalize`), so that errors and predictions mean "
                "little. Give data of these channels, and the checkpoint as `ckpt_path`, so that its constants "
                "are used."
            )
