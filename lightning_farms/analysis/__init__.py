"""Analysis of models and checkpoints: finds their weights, fits their spectra, returns a SpectralReport; read-only."""

from lightning_farms.analysis.apart import weights_apart
from lightning_farms.analysis.checkpoint.state_dict import checkpoint_changes, checkpoint_weights
from lightning_farms.analysis.comparison import ComparedLayer, Comparison, compare
from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.engine import WORKSPACE, analyze, analyze_weights
from lightning_farms.analysis.known_layers import KnownLayers
from lightning_farms.analysis.layer_spectrum import LayerSpectrum, Status
from lightning_farms.analysis.method import FARMS, SpectralMethod, WholeMatrix
from lightning_farms.analysis.ranks import Ranks
from lightning_farms.analysis.report import SpectralReport
from lightning_farms.analysis.selection import KINDS, MODEL_BALANCING, Selection
from lightning_farms.analysis.summary import Summary
from lightning_farms.analysis.weights.layer_weight import LayerWeight, ModuleWeight
from lightning_farms.analysis.weights.model import layer_weights
from lightning_farms.analysis.weights.ownership import parameter_layers
from lightning_farms.analysis.weights.registry import HasSpectralWeights, module_weights
from lightning_farms.common.checkpoints.files import open_checkpoint

__all__ = [
    "FARMS",
    "KINDS",
    "MODEL_BALANCING",
    "WORKSPACE",
    "ComparedLayer",
    "Comparison",
    "Diagnostics",
    "HasSpectralWeights",
    "KnownLayers",
    "LayerSpectrum",
    "LayerWeight",
    "ModuleWeight",
    "Ranks",
    "Selection",
    "SpectralMethod",
    "SpectralReport",
    "Status",
    "Summary",
    "WholeMatrix",
    "analyze",
    "analyze_weights",
    "checkpoint_changes",
    "checkpoint_weights",
    "compare",
    "layer_weights",
    "module_weights",
    "open_checkpoint",
    "parameter_layers",
    "weights_apart",
]
