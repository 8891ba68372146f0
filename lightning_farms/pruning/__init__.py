"""Pruning of language models: how much of each layer to prune (e.g. by its alphas), and which of its weights."""

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
from lightning_farms.pruning.block_pass import prune
from lightning_farms.pruning.evaluation import TaskScore, task_scores
from lightning_farms.pruning.input_squares import input_mean_squares
from lightning_farms.pruning.loading import CausalLM, load_causal_lm
from lightning_farms.pruning.mask_state import Masks
from lightning_farms.pruning.perplexity import Perplexity, perplexity
from lightning_farms.pruning.prunable import PrunableWeight, decoder_blocks, prunable_weights
from lightning_farms.pruning.pruned_folder import PrunedFolder
from lightning_farms.pruning.ratios import LayerRatio, LayerRatios
from lightning_farms.pruning.recipe import llm_compressor_recipe, prune_with_torch
from lightning_farms.pruning.report import PrunedBlock, PrunedLayer, PruningReport
from lightning_farms.pruning.schedule import Cubic, OneShot, PruningSchedule
from lightning_farms.pruning.text import Calibration

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "Calibration",
    "CausalLM",
    "Cubic",
    "DLPAllocation",
    "FARMSAllocation",
    "FileAllocation",
    "LayerRatio",
    "LayerRatios",
    "Masks",
    "OWLAllocation",
    "OneShot",
    "Perplexity",
    "PrunableWeight",
    "PrunedBlock",
    "PrunedFolder",
    "PrunedLayer",
    "PruningReport",
    "PruningSchedule",
    "RampAllocation",
    "TaskScore",
    "UniformAllocation",
    "WholeMatrixAllocation",
    "allocate",
    "allocate_from_alphas",
    "decoder_blocks",
    "input_mean_squares",
    "llm_compressor_recipe",
    "load_causal_lm",
    "perplexity",
    "prunable_weights",
    "prune",
    "prune_with_torch",
    "task_scores",
]
