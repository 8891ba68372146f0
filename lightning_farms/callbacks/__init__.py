"""Lightning callbacks: when to analyse, what to log, which learning rates to set. No arithmetic here."""

from lightning_farms.callbacks.layerwise_learning_rate import LayerwiseLearningRate
from lightning_farms.callbacks.spectral_monitor import SpectralMonitor
from lightning_farms.callbacks.tb_sigmoid import TBSigmoid
from lightning_farms.callbacks.temp_balance import TempBalance

__all__ = ["LayerwiseLearningRate", "SpectralMonitor", "TBSigmoid", "TempBalance"]
