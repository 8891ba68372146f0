"""Alphas of a network's layers -> sparse networks: how much each layer loses, and which of its weights."""

from lightning_farms.pruning.loading import CausalLM, load_causal_lm

__all__ = ["CausalLM", "load_causal_lm"]
