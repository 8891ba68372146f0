"""Largest error at any point (PDEBench's Max)."""

from __future__ import annotations

from typing import ClassVar, Literal

from torch import Tensor

from lightning_farms.metrics._accumulation import FieldMetric
from lightning_farms.metrics._fields import Per, at_least_float32, average, check_fields, check_per


def max_error(prediction: Tensor, target: Tensor, *, per: Per | None = None) -> Tensor:
    r"""Largest absolute error at any point of any sample, for each frame and channel, then averaged (PDEBench).

    .. math:: \frac{1}{T C} \sum_{t, c} \max_{b, x, y} \lvert \hat u_{b, x, y, t, c} - u_{b, x, y, t, c} \rvert

    The maximum runs over all samples, so it grows with their number, and averaging the values of batches gives another
    number; `MaxError` accumulates batches correctly. As PDEBench leaves the given first frames out, pass only the
    predicted ones.

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
        >>> error = torch.tensor([0.5, -2.0]).reshape(2, 1, 1, 1, 1)
        >>> float(max_error(error, torch.zeros_like(error)))
        2.0

    Reference:
        Takamoto et al., "PDEBench: An Extensive Benchmark for Scientific Machine Learning", NeurIPS 2022, the
        metric max error.
    """
    check_fields(prediction, target)
    check_per(per)
    return average(_per_sample(prediction, target).amax(0), per)


class MaxError(FieldMetric):
    """PDEBench's Max: largest absolute error at any point of any sample, per frame and channel, then averaged.

    See `max_error` for the formula. Pass only the predicted frames, not the given ones. Exact for batches of any
    size.

    Args:
        per: None, "channel", "frame" or "frame_and_channel", for a result of shape (), (channels,), (frames,) or
            (frames, channels).

    Raises:
        ValueError: If ``per`` is not one of its allowed values.

    Example:
        >>> import torch
        >>> metric = MaxError()
        >>> target = torch.zeros(1, 4, 4, 1, 1)
        >>> for error in (0.5, -2.0):
        ...     metric.update(target + error, target)
        >>> float(metric.compute())
        2.0
    """

    reduction: ClassVar[Literal["sum", "max"]] = "max"

    def __init__(self, *, per: Per | None = None) -> None:
        super().__init__(per)

    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _per_sample(prediction, target)


def _per_sample(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the error of each sample, frame and channel, shape (batch, frames, channels)."""
    prediction, target = at_least_float32(prediction, target)
    return (prediction - target).abs().amax((1, 2))
