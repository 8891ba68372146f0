"""Neural operators and the reading and writing of their checkpoints."""

from lightning_farms.models.checkpoint import load_weights, save_weights
from lightning_farms.models.dpot import DPOT, DPOTConfig, DPOTOutput
from lightning_farms.models.operator_module import OperatorModule

__all__ = ["DPOT", "DPOTConfig", "DPOTOutput", "OperatorModule", "load_weights", "save_weights"]
