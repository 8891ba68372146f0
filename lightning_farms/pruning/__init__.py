"""Alphas of a network's layers -> sparse networks: how much each layer loses, and which of its weights."""

from lightning_farms.pruning.loading import CausalLM, load_causal_lm
from lightning_farms.pruning.text import Calibration

__all__ = ["Calibration", "CausalLM", "load_causal_lm"]
