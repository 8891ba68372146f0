"""Checks of a run's data against those that the starting weights in a Lightning checkpoint were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_farms.common.checkpoints.safe_load import load_safely
from lightning_farms.data.cfd_data_module import CFDDataModule


def check_origin(checkpoint: str, data: CFDDataModule, stage: str) -> None:
    """For an evaluation, take over the training's scaling, and refuse other channels or another `normalize`.

    A training may start from weights for other channels, but not for the same channels in another order.
    """
    state = _data_state(Path(checkpoint), type(data).__qualname__)
    if state is None:
        return
    if stage != "fit":
        data.prepare_data()
        data.setup(stage)
        data.load_state_dict(dict(state))
        return
    channels = list(state.get("channels", data.channels))
    if channels != list(data.channels) and sorted(channels) == sorted(data.channels):
        raise ValueError(
            f"Expected the channels to be in the order {channels}, as in the training of {checkpoint}, but got "
            f"{list(data.channels)}. Give its `channel_order` or `fields`."
        )
    if state.get("normalize", data.normalize) != data.normalize:
        rank_zero_warn(
            f"{checkpoint} was trained with `normalize` {state['normalize']}, and this training has {data.normalize}: "
            "the weights begin with fields of another scale."
        )


def _data_state(path: Path, name: str) -> Mapping[str, Any] | None:
    """Return a data module's state in a checkpoint, or None if there is none."""
    try:
        content = load_safely(path) if path.is_file() else None
    except ValueError:  # another format, which has no such state
        return None
    state = content.get(name) if isinstance(content, Mapping) else None
    return state if isinstance(state, Mapping) else None
