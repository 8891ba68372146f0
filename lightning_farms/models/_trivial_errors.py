"""Errors of persistence and the drift-free predictor on the flows that a network is evaluated on."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from lightning_farms.metrics import VRMSE, RelativeL2Error, has_velocities, trivial_predictions

_PREDICTORS = ("persistence", "drift_free")


class TrivialErrors(nn.Module):
    """L2RE and VRMSE of the trivial predictors; the channels' names decide which predictors there are."""

    def __init__(self) -> None:
        super().__init__()
        for name in _PREDICTORS:
            errors: dict[str, Metric | MetricCollection] = {"l2re": RelativeL2Error(), "vrmse": VRMSE()}
            self.add_module(name, MetricCollection(errors, compute_groups=False))

    def update(self, given: Tensor, target: Tensor, channels: Sequence[str]) -> None:
        """Add a batch, in physical units."""
        for name, prediction in trivial_predictions(given, target.shape[3], channels).items():
            self._errors(name).update(prediction, target)

    def compute(self, channels: Sequence[str]) -> dict[str, Tensor]:
        """Errors over all processes, under names such as "l2re_persistence"; every process has to call this."""
        names = _PREDICTORS if has_velocities(channels) else _PREDICTORS[:1]
        return {f"{error}_{name}": value for name in names for error, value in self._errors(name).compute().items()}

    def reset(self) -> None:
        """Forget all batches."""
        for name in _PREDICTORS:
            self._errors(name).reset()

    def _errors(self, name: str) -> MetricCollection:
        errors = self.get_submodule(name)
        assert isinstance(errors, MetricCollection)
        return errors
