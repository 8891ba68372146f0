"""Reads the weight matrices of checkpoint files and state dicts, without the model's classes."""

from lightning_farms.analysis.checkpoint.state_dict import checkpoint_changes, checkpoint_weights
from lightning_farms.common.checkpoints.files import open_checkpoint

__all__ = ["checkpoint_changes", "checkpoint_weights", "open_checkpoint"]
