"""Checks of a run's data against those that the starting weights in a Lightning checkpoint were trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_farms.common.checkpoints.safe_load import load_safely
from lightning_farms.data.cfd_data_module import CFDDataModule
from lightning_farms.data.fields.pdebench import CHANNELS
from lightning_farms.models.dpot.weights.released import find_released


def check_origin(checkpoint: str, data: CFDDataModule, stage: str) -> None:
    """For an evaluation, take over the training's scaling, and refuse other channels or another `normalize`.

    A training may start from weights for other channels, but not for the same channels in another order.
    """
    if find_released(checkpoint) is not None:
        _check_order(CHANNELS["dpot"], data, checkpoint)
        return
    state = _data_state(Path(checkpoint), type(data).__qualname__)
    if state is None:
        return
    if stage != "fit":
        data.prepare_data()
        data.setup(stage)
        data.load_state_dict(dict(state))
        return
    _check_order(state.get("channels", data.channels), data, checkpoint)
    if state.get("normalize", data.normalize) != data.normalize:
        rank_zero_warn(
            f"{checkpoint} was trained with `normalize` {state['normalize']}, but this training has "
            f"{data.normalize}, so that the weights begin with fields of another scale. Set `--data.normalize` to "
            f"{str(state['normalize']).lower()}, unless you mean the change."
        )


def _check_order(trained: Sequence[str], data: CFDDataModule, checkpoint: str) -> None:
    """Refuse the channels of a training in another order: weights are matched by position."""
    channels, own = list(trained), list(data.channels)
    if channels != own and sorted(channels) == sorted(own):
        raise ValueError(
            f"Expected the channels to be in the order {channels}, as in the training of {checkpoint}, but got "
            f"{own}. Give its `channel_order` or `fields`."
        )


def _data_state(path: Path, name: str) -> Mapping[str, Any] | None:
    """Return a data module's state in a checkpoint, or None if there is none."""
    try:
        content = load_safely(path) if path.is_file() else None
    except ValueError:  # another format, which has no such state
        return None
    state = content.get(name) if isinstance(content, Mapping) else None
    return state if isinstance(state, Mapping) else None
