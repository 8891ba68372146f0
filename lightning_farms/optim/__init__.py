"""Layer-wise hyperparameters for any optimizer and scheduler; the only code that touches ``optimizer.param_groups``."""

from lightning_farms.optim.param_groups import layerwise_param_groups
from lightning_farms.optim.scaling import LayerwiseScaling
from lightning_farms.optim.support import check_decoupled_weight_decay, check_supported
from lightning_farms.optim.unwrap import updating_optimizer

__all__ = [
    "LayerwiseScaling",
    "check_decoupled_weight_decay",
    "check_supported",
    "layerwise_param_groups",
    "updating_optimizer",
]
