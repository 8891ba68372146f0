"""nn.Module in, SpectralReport out; read-only."""

from lightning_farms.analysis.engine import analyze
from lightning_farms.analysis.method import FARMS, SpectralMethod, WholeMatrix
from lightning_farms.analysis.report import LayerSpectrum, SpectralReport
from lightning_farms.analysis.weights import layer_weights, module_weights, parameter_layers

__all__ = [
    "FARMS",
    "LayerSpectrum",
    "SpectralMethod",
    "SpectralReport",
    "WholeMatrix",
    "analyze",
    "layer_weights",
    "module_weights",
    "parameter_layers",
]
