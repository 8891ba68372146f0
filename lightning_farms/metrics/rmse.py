"""Root-mean-square error over space (PDEBench's RMSE)."""

from __future__ import annotations

import math

from torch import Tensor

from lightning_farms.metrics._accumulation import FieldMetric
from lightning_farms.metrics._fields import Per, at_least_float32, average, check_fields, check_per, norm


def rmse(prediction: Tensor, target: Tensor, *, per: Per | None = None) -> Tensor:
    r"""Root-mean-square error over space, for each sample, frame and channel on its own, then averaged (PDEBench).

    .. math::
        \frac{1}{B T C} \sum_{b, t, c}
        \sqrt{\langle (\hat u_{b, \cdot, \cdot, t, c} - u_{b, \cdot, \cdot, t, c})^2 \rangle}

    As PDEBench leaves the given first frames out, pass only the predicted ones. Half-precision input is computed in
    float32.

    Args:
        prediction: Predicted fields, (batch, X, Y, frames, channels).
        target: True fields, the same shape, in the same units.
        per: Give the error for each "channel", each "frame" or each "frame_and_channel"; a single number by default.

    Returns:
        The error in units of the fields, a scalar, or of shape (channels,), (frames,) or (frames, channels) as ``per``
        asks.

    Raises:
        ValueError: If the shapes differ, are not 5-dimensional or hold no elements, or if ``per`` is not one of
            its allowed values.
        TypeError: If an argument is not a real floating-point tensor.

    Example:
        >>> import torch
        >>> target = torch.zeros(1, 4, 4, 2, 1)
        >>> rmse(target + torch.tensor([[1.0], [3.0]]), target, per="frame")
        tensor([1., 3.])

    Reference:
        Takamoto et al., "PDEBench: An Extensive Benchmark for Scientific Machine Learning", NeurIPS 2022, the
        metric RMSE.
    """
    check_fields(prediction, target)
    check_per(per)
    return average(_per_sample(prediction, target).mean(0), per)


class RMSE(FieldMetric):
    """PDEBench's RMSE: root-mean-square error over space, per sample, frame and channel, then averaged.

    See `rmse` for the formula. Pass only the predicted frames, not the given ones. Exact for batches of any size:
    each sample weighs the same.

    Args:
        per: None, "channel", "frame" or "frame_and_channel", for a result of shape (), (channels,), (frames,) or
            (frames, channels).

    Raises:
        ValueError: If ``per`` is not one of its allowed values.

    Example:
        >>> import torch
        >>> metric = RMSE()
        >>> target = torch.zeros(2, 4, 4, 3, 1)
        >>> metric.update(target + 1.5, target)
        >>> float(metric.compute())
        1.5
    """

    def __init__(self, *, per: Per | None = None) -> None:
        super().__init__(per)

    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _per_sample(prediction, target)


def root_mean_square(fields: Tensor) -> Tensor:
    """Return the root mean square over space, in the dtype for sums."""
    return norm(fields, (1, 2)) / math.sqrt(fields.shape[1] * fields.shape[2])


def _per_sample(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the error of each sample, frame and channel, shape (batch, frames, channels)."""
    prediction, target = at_least_float32(prediction, target)
    return root_mean_square(prediction - target).to(target.dtype)
