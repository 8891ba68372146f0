"""Alphas of a network's layers -> sparse networks: how much each layer loses, and which of its weights."""

from lightning_farms.pruning.loading import CausalLM, load_causal_lm
from lightning_farms.pruning.perplexity import Perplexity, perplexity
from lightning_farms.pruning.recipe import llm_compressor_recipe, prune_with_torch
from lightning_farms.pruning.text import Calibration

__all__ = [
    "Calibration",
    "CausalLM",
    "Perplexity",
    "llm_compressor_recipe",
    "load_causal_lm",
    "perplexity",
    "prune_with_torch",
]
