"""Errors of predicted fields: torchmetrics classes and the functions behind them."""

from lightning_farms.metrics.errors import NormalizedRMSE, RelativeL2Error
from lightning_farms.metrics.functional import normalized_rmse, relative_l2_error

__all__ = ["NormalizedRMSE", "RelativeL2Error", "normalized_rmse", "relative_l2_error"]
