"""Errors of predicted fields: torchmetrics classes and the functions behind them."""

from lightning_farms.metrics.boundary import BoundaryRMSE, boundary_rmse
from lightning_farms.metrics.conserved import ConservedRMSE, conserved_rmse
from lightning_farms.metrics.fourier import FourierRMSE, fourier_rmse
from lightning_farms.metrics.maximum import MaxError, max_error
from lightning_farms.metrics.normalized import NormalizedRMSE, normalized_rmse
from lightning_farms.metrics.relative_l2 import RelativeL2Error, relative_l2_error
from lightning_farms.metrics.root_mean_square import RMSE, rmse
from lightning_farms.metrics.variance_scaled import VRMSE, vrmse

__all__ = [
    "RMSE",
    "VRMSE",
    "BoundaryRMSE",
    "ConservedRMSE",
    "FourierRMSE",
    "MaxError",
    "NormalizedRMSE",
    "RelativeL2Error",
    "boundary_rmse",
    "conserved_rmse",
    "fourier_rmse",
    "max_error",
    "normalized_rmse",
    "relative_l2_error",
    "rmse",
    "vrmse",
]
