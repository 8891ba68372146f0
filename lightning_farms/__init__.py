"""Spectra of every weight matrix during training (FARMS), and layer-wise learning rates from them, for Lightning."""

from lightning_farms.analysis import FARMS, LayerSpectrum, SpectralReport, WholeMatrix, analyze
from lightning_farms.callbacks import SpectralMonitor, TBSigmoid, TempBalance

__version__ = "0.1.0"

__all__ = [
    "FARMS",
    "LayerSpectrum",
    "SpectralMonitor",
    "SpectralReport",
    "TBSigmoid",
    "TempBalance",
    "WholeMatrix",
    "analyze",
]
