"""Error of the conserved totals (PDEBench's CSV)."""

from __future__ import annotations

from torch import Tensor

from lightning_farms.metrics._accumulation import FieldMetric
from lightning_farms.metrics._fields import (
    Per,
    accumulation_dtype,
    at_least_float32,
    average,
    check_fields,
    check_per,
    root,
)


def conserved_rmse(prediction: Tensor, target: Tensor, *, per: Per | None = None) -> Tensor:
    r"""Root-mean-square, over the samples, of the error of each field's total over space (PDEBench's CSV).

    .. math::
        \frac{1}{T C} \sum_{t, c} \frac{1}{n_x n_y}
        \sqrt{\frac{1}{B} \sum_b \Bigl(\sum_{x, y} \hat u_{b, x, y, t, c} - \sum_{x, y} u_{b, x, y, t, c}\Bigr)^2}

    The root is taken after the mean over samples, so averaging the values of batches gives another number;
    `ConservedRMSE` accumulates batches correctly. As PDEBench leaves the given first frames out, pass only the
    predicted ones. The sums over space run in float64.

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
        >>> target = torch.zeros(2, 4, 4, 1, 1)
        >>> error = torch.tensor([3.0, -4.0]).reshape(2, 1, 1, 1, 1)
        >>> round(float(conserved_rmse(target + error, target)), 4)  # the root of (9 + 16) / 2
        3.5355

    Reference:
        Takamoto et al., "PDEBench: An Extensive Benchmark for Scientific Machine Learning", NeurIPS 2022, the
        metric cRMSE.
    """
    check_fields(prediction, target)
    check_per(per)
    errors = root(_per_sample(prediction, target).mean(0))
    return average(errors, per).to(at_least_float32(prediction, target)[0].dtype)


class ConservedRMSE(FieldMetric):
    """PDEBench's CSV: root-mean-square over all samples of the error of each field's total over space.

    See `conserved_rmse` for the formula. Pass only the predicted frames, not the given ones. Exact for batches of
    any size.

    Args:
        per: None, "channel", "frame" or "frame_and_channel", for a result of shape (), (channels,), (frames,) or
            (frames, channels).

    Raises:
        ValueError: If ``per`` is not one of its allowed values.

    Example:
        >>> import torch
        >>> metric = ConservedRMSE()
        >>> target = torch.zeros(1, 4, 4, 1, 1)
        >>> for error in (3.0, -4.0):
        ...     metric.update(target + error, target)
        >>> round(float(metric.compute()), 4)
        3.5355
    """

    def __init__(self, *, per: Per | None = None) -> None:
        super().__init__(per)

    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _per_sample(prediction, target)

    def _error(self, statistic: Tensor) -> Tensor:
        return root(statistic)


def _per_sample(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the squared error of the mean over space, (batch, frames, channels)."""
    prediction, target = at_least_float32(prediction, target)
    return (prediction - target).mean((1, 2), dtype=accumulation_dtype(target.device)) ** 2
