"""Layer-wise hyperparameters of optimizers by the layers' alphas, in any training loop."""

from lightning_farms.balancing.alpha_map import AlphaMap, LinearMap, Log2Map, SigmoidMap, SqrtMap, StepMap
from lightning_farms.balancing.balancer import Balancer
from lightning_farms.balancing.control import Control

__all__ = ["AlphaMap", "Balancer", "Control", "LinearMap", "Log2Map", "SigmoidMap", "SqrtMap", "StepMap"]
