"""Finds the weight matrices that the modules of a model hold, and the layer that each parameter belongs to."""

from lightning_farms.analysis.weights.layer_weight import NO_MATRICES, LayerWeight, ModuleWeight
from lightning_farms.analysis.weights.model import layer_weights
from lightning_farms.analysis.weights.ownership import parameter_layers
from lightning_farms.analysis.weights.registry import HasSpectralWeights, module_weights

__all__ = [
    "NO_MATRICES",
    "HasSpectralWeights",
    "LayerWeight",
    "ModuleWeight",
    "layer_weights",
    "module_weights",
    "parameter_layers",
]
