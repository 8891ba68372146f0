"""What starting weights in a Lightning checkpoint say of the data that they were trained on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch.utilities import rank_zero_warn

from lightning_farms.common.checkpoints.safe_load import load_safely
from lightning_farms.data.cfd_data_module import CFDDataModule


def check_origin(checkpoint: str, data: CFDDataModule, stage: str) -> None:
    """Refuse to evaluate with other channels or another scaling than in the training, and take over its scaling.

    A training may differ: it may go on from other channels, but not from the same in another order.
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
    """A data module's state in a checkpoint; None where there is none."""
    try:
        content = load_safely(path) if path.is_file() else None
    except ValueError:  # of another format, which has none
        return None
    state = content.get(name) if isinstance(content, Mapping) else None
    return state if isinstance(state, Mapping) else None
