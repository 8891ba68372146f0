"""Errors of predicted fields as metrics, exact under any batching and any number of processes."""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_farms.metrics.functional import check_fields, normalized_rmse_per_sample, relative_l2_per_sample


class _MeanOverSamples(Metric):
    """Mean of a per-sample error: a float64 sum and a count, which add up over batches and processes."""

    is_differentiable = True
    higher_is_better = False
    full_state_update = False
    plot_lower_bound = 0.0

    total: Tensor
    count: Tensor

    def __init__(self, *, eps: float = 1e-8) -> None:
        super().__init__()
        if not eps > 0:
            raise ValueError(f"Expected argument `eps` to be positive, but got {eps}.")
        self.eps = eps
        self.add_state("total", default=torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", default=torch.zeros((), dtype=torch.int64), dist_reduce_fx="sum")

    @abstractmethod
    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Error of each sample, (batch,)."""

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Add a batch.

        Args:
            prediction: Predicted fields, (batch, X, Y, frames, channels).
            target: True fields, the same shape.
        """
        check_fields(prediction, target, self.eps)
        self.total = self.total + self._per_sample(prediction, target).sum(dtype=torch.float64)
        self.count = self.count + len(target)

    def compute(self) -> Tensor:
        """Mean over all samples added since the last reset.

        Returns:
            The error, a scalar of type float32.

        Raises:
            ValueError: If no batch was added.
        """
        if self.count == 0:
            raise ValueError("Expected at least one sample before `compute`, but got none. Call `update` first.")
        return (self.total / self.count).float()


class RelativeL2Error(_MeanOverSamples):
    """Relative L2 error per channel over space and frames, averaged over channels and samples (DPOT's L2RE).

    The formula, and what happens where a target is zero, is told at `relative_l2_error`. Exact for batches of any
    size: each sample weighs the same.

    Args:
        eps: Floor of the denominator, positive.

    Raises:
        ValueError: If ``eps`` is not positive.

    Example:
        >>> import torch
        >>> metric = RelativeL2Error()
        >>> target = torch.ones(3, 4, 4, 2, 1)
        >>> metric.update(1.1 * target[:1], target[:1])
        >>> metric.update(0.6 * target[1:], target[1:])
        >>> round(float(metric.compute()), 6)
        0.3
    """

    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        return relative_l2_per_sample(prediction, target, self.eps)


class NormalizedRMSE(_MeanOverSamples):
    """PDEBench's nRMSE: root-mean-square error over space relative to the target's, per frame and channel.

    The formula, and what happens where a target is zero, is told at `normalized_rmse`. Pass only the predicted frames,
    not the given ones. Exact for batches of any size: each sample weighs the same.

    Args:
        eps: Floor of the denominator, positive.

    Raises:
        ValueError: If ``eps`` is not positive.

    Example:
        >>> import torch
        >>> metric = NormalizedRMSE()
        >>> target = torch.full((2, 4, 4, 3, 1), 2.0)
        >>> metric.update(target + 1.0, target)
        >>> float(metric.compute())
        0.5
    """

    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        return normalized_rmse_per_sample(prediction, target, self.eps)
