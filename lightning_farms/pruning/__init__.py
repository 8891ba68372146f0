"""Alphas of a network's layers -> sparse networks: how much each layer loses, and which of its weights."""

from lightning_farms.pruning.allocation import (
    ALLOCATIONS,
    Allocation,
    DLPAllocation,
    FARMSAllocation,
    FileAllocation,
    OWLAllocation,
    RampAllocation,
    UniformAllocation,
    WholeMatrixAllocation,
    allocate,
    allocate_from_alphas,
)
from lightning_farms.pruning.loading import CausalLM, load_causal_lm
from lightning_farms.pruning.perplexity import Perplexity, perplexity
from lightning_farms.pruning.ratios import LayerRatio, LayerRatios
from lightning_farms.pruning.recipe import llm_compressor_recipe, prune_with_torch
from lightning_farms.pruning.text import Calibration

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "Calibration",
    "CausalLM",
    "DLPAllocation",
    "FARMSAllocation",
    "FileAllocation",
    "LayerRatio",
    "LayerRatios",
    "OWLAllocation",
    "Perplexity",
    "RampAllocation",
    "UniformAllocation",
    "WholeMatrixAllocation",
    "allocate",
    "allocate_from_alphas",
    "llm_compressor_recipe",
    "load_causal_lm",
    "perplexity",
    "prune_with_torch",
]
