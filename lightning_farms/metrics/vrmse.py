"""Root-mean-square error relative to the target's standard deviation (The Well's VRMSE)."""

from __future__ import annotations

from torch import Tensor

from lightning_farms.metrics._accumulation import FieldMetric
from lightning_farms.metrics._fields import (
    Per,
    accumulation_dtype,
    at_least_float32,
    average,
    check_eps,
    check_fields,
    check_per,
)
from lightning_farms.metrics.rmse import root_mean_square


def vrmse(prediction: Tensor, target: Tensor, *, eps: float = 1e-7, per: Per | None = None) -> Tensor:
    r"""Root-mean-square error over space in standard deviations of the target, per frame and channel (The Well).

    .. math::
        \frac{1}{B T C} \sum_{b, t, c}
        \sqrt{\frac{\langle (\hat u_{b, \cdot, \cdot, t, c} - u_{b, \cdot, \cdot, t, c})^2 \rangle}
                   {\langle (u_{b, \cdot, \cdot, t, c} - \langle u_{b, \cdot, \cdot, t, c} \rangle)^2 \rangle
                    + \varepsilon}}

    Unlike `normalized_rmse`, it does not flatter fields with a large mean and small fluctuations, such as pressure and
    density. Half-precision input is computed in float32.

    Args:
        prediction: Predicted fields, (batch, X, Y, frames, channels).
        target: True fields, the same shape, in the same units.
        eps: Added to the variance, in squared units of the fields. A frame whose target is constant contributes its
            absolute error divided by the root of ``eps``.
        per: Give the error for each "channel", each "frame" or each "frame_and_channel"; a single number by default.

    Returns:
        The error, a scalar, or of shape (channels,), (frames,) or (frames, channels) as ``per`` asks. 0 is perfect, 1
        is as good as predicting the mean over space.

    Raises:
        ValueError: If the shapes differ, are not 5-dimensional or hold no elements, if ``eps`` is not positive, or if
            ``per`` is not one of its allowed values.
        TypeError: If an argument is not a real floating-point tensor.

    Example:
        >>> import torch
        >>> target = torch.tensor([99.0, 101.0]).reshape(1, 2, 1, 1, 1).expand(1, 2, 4, 3, 1)
        >>> round(float(vrmse(target + 0.5, target)), 6)
        0.5

    Reference:
        Ohana et al., "The Well: a Large-Scale Collection of Diverse Physics Simulations for Machine Learning",
        NeurIPS 2024, the metric VRMSE. (Its program divides the variance by the number of points less one, which
        makes the error of 128 x 128 points smaller by a factor of 0.99997.)
    """
    check_fields(prediction, target)
    check_eps(eps)
    check_per(per)
    return average(_per_sample(prediction, target, eps).mean(0), per)


class VRMSE(FieldMetric):
    """The Well's VRMSE: root-mean-square error over space in standard deviations of the target, per frame and channel.

    See `vrmse` for the formula and for targets that are constant. Exact for batches of any size: each
    sample weighs the same.

    Args:
        eps: Added to the variance, positive.
        per: None, "channel", "frame" or "frame_and_channel", for a result of shape (), (channels,), (frames,) or
            (frames, channels).

    Raises:
        ValueError: If ``eps`` is not positive, or ``per`` is not one of its allowed values.

    Example:
        >>> import torch
        >>> metric = VRMSE()
        >>> target = torch.tensor([99.0, 101.0]).reshape(1, 2, 1, 1, 1)
        >>> metric.update(target + 0.5, target)
        >>> round(float(metric.compute()), 6)
        0.5
    """

    def __init__(self, *, eps: float = 1e-7, per: Per | None = None) -> None:
        check_eps(eps)
        super().__init__(per, str(eps))
        self.eps = eps

    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _per_sample(prediction, target, self.eps)


def _per_sample(prediction: Tensor, target: Tensor, eps: float) -> Tensor:
    """Return the error of each sample, frame and channel, shape (batch, frames, channels)."""
    prediction, target = at_least_float32(prediction, target)
    shifted = target - target[:, :1, :1]  # else a large mean would cost the variance its digits
    mean = shifted.mean((1, 2), dtype=accumulation_dtype(target.device))
    variance = root_mean_square(shifted).square() - mean.square()
    return (root_mean_square(prediction - target) / (variance.clamp(min=0) + eps).sqrt()).to(target.dtype)
