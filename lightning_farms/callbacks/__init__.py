"""Lightning callbacks: when to analyse, what to log, and which hyperparameters to set per layer, without arithmetic."""

from lightning_farms.balancing.alpha_map import AlphaMap, LinearMap, Log2Map, SigmoidMap, SqrtMap, StepMap
from lightning_farms.balancing.control import Control
from lightning_farms.callbacks.layerwise_learning_rate import LayerwiseLearningRate
from lightning_farms.callbacks.layerwise_pruning import LayerwisePruning
from lightning_farms.callbacks.prediction_writer import PredictionWriter
from lightning_farms.callbacks.rollout_monitor import RolloutMonitor
from lightning_farms.callbacks.spectral_monitor import SpectralMonitor
from lightning_farms.callbacks.tb_sigmoid import TBSigmoid
from lightning_farms.callbacks.temp_balance import TempBalance
from lightning_farms.callbacks.weight_decay_balance import WeightDecayBalance

__all__ = [
    "AlphaMap",
    "Control",
    "LayerwiseLearningRate",
    "LayerwisePruning",
    "LinearMap",
    "Log2Map",
    "PredictionWriter",
    "RolloutMonitor",
    "SigmoidMap",
    "SpectralMonitor",
    "SqrtMap",
    "StepMap",
    "TBSigmoid",
    "TempBalance",
    "WeightDecayBalance",
]
