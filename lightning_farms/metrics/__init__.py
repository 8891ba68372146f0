"""Errors of predicted fields, as torchmetrics classes and functions, and trivial predictors to compare them with."""

from lightning_farms.metrics.boundary_rmse import BoundaryRMSE, boundary_rmse
from lightning_farms.metrics.conserved_rmse import ConservedRMSE, conserved_rmse
from lightning_farms.metrics.fourier_rmse import FourierRMSE, fourier_rmse
from lightning_farms.metrics.max_error import MaxError, max_error
from lightning_farms.metrics.normalized_rmse import NormalizedRMSE, normalized_rmse
from lightning_farms.metrics.relative_l2_error import RelativeL2Error, relative_l2_error
from lightning_farms.metrics.rmse import RMSE, rmse
from lightning_farms.metrics.trivial_predictors import drift_free, has_velocities, persistence, trivial_predictions
from lightning_farms.metrics.vrmse import VRMSE, vrmse

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
    "drift_free",
    "fourier_rmse",
    "has_velocities",
    "max_error",
    "normalized_rmse",
    "persistence",
    "relative_l2_error",
    "rmse",
    "trivial_predictions",
    "vrmse",
]
