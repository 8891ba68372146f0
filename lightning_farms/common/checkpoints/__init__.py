"""Reader of checkpoint files of any kind, which works safely and tensor by tensor."""

from lightning_farms.common.checkpoints.files import (
    STATE_DICT_KEYS,
    StoredCheckpoint,
    listed_state_dicts,
    open_checkpoint,
    read_stored,
)
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor
from lightning_farms.common.checkpoints.safe_load import damaged, load_safely
from lightning_farms.common.checkpoints.shapes import MetaTensors, SomeTensors, StoredTensors

__all__ = [
    "STATE_DICT_KEYS",
    "MetaTensors",
    "SomeTensors",
    "StoredCheckpoint",
    "StoredTensors",
    "UnreadableTensor",
    "damaged",
    "listed_state_dicts",
    "load_safely",
    "open_checkpoint",
    "read_stored",
]
