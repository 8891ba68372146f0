"""Root-mean-square error relative to the target's root-mean-square (PDEBench's nRMSE)."""

from __future__ import annotations

from torch import Tensor

from lightning_farms.metrics._accumulation import FieldMetric
from lightning_farms.metrics._fields import Per, at_least_float32, average, check_eps, check_fields, check_per
from lightning_farms.metrics.rmse import root_mean_square


def normalized_rmse(prediction: Tensor, target: Tensor, *, eps: float = 1e-8, per: Per | None = None) -> Tensor:
    r"""Root-mean-square error over space, relative to the target's, for each frame and channel on its own (PDEBench).

    .. math::
        \frac{1}{B T C} \sum_{b, t, c}
        \frac{\sqrt{\langle (\hat u_{b, \cdot, \cdot, t, c} - u_{b, \cdot, \cdot, t, c})^2 \rangle}}
             {\max(\sqrt{\langle u_{b, \cdot, \cdot, t, c}^2 \rangle}, \varepsilon)}

    As PDEBench leaves the given first frames out, pass only the predicted ones. Half-precision input is computed in
    float32.

    Args:
        prediction: Predicted fields, (batch, X, Y, frames, channels).
        target: True fields, the same shape, in the same units.
        eps: Floor of the denominator, in units of the fields. A frame whose target is zero everywhere contributes its
            absolute error divided by ``eps``: large and conspicuous, but finite (PDEBench's program gives inf or NaN).
        per: Give the error for each "channel", each "frame" or each "frame_and_channel"; a single number by default.

    Returns:
        The error, a scalar, or of shape (channels,), (frames,) or (frames, channels) as ``per`` asks. 0 is perfect, 1
        is as good as predicting zero.

    Raises:
        ValueError: If the shapes differ, are not 5-dimensional or hold no elements, if ``eps`` is not positive, or if
            ``per`` is not one of its allowed values.
        TypeError: If an argument is not a real floating-point tensor.

    Example:
        >>> import torch
        >>> target = torch.tensor([1.0, 10.0]).expand(1, 4, 4, 1, 2)
        >>> round(float(normalized_rmse(target + 0.1, target)), 6)
        0.055

    Reference:
        Takamoto et al., "PDEBench: An Extensive Benchmark for Scientific Machine Learning", NeurIPS 2022, the
        metric nRMSE.
    """
    check_fields(prediction, target)
    check_eps(eps)
    check_per(per)
    return average(_per_sample(prediction, target, eps).mean(0), per)


class NormalizedRMSE(FieldMetric):
    """PDEBench's nRMSE: root-mean-square error over space relative to the target's, per frame and channel.

    See `normalized_rmse` for the formula and for targets that are zero everywhere. Pass only the predicted frames,
    not the given ones. Exact for batches of any size: each sample weighs the same.

    Args:
        eps: Floor of the denominator, positive.
        per: None, "channel", "frame" or "frame_and_channel", for a result of shape (), (channels,), (frames,) or
            (frames, channels).

    Raises:
        ValueError: If ``eps`` is not positive, or ``per`` is not one of its allowed values.

    Example:
        >>> import torch
        >>> metric = NormalizedRMSE()
        >>> target = torch.full((2, 4, 4, 3, 1), 2.0)
        >>> metric.update(target + 1.0, target)
        >>> float(metric.compute())
        0.5
    """

    def __init__(self, *, eps: float = 1e-8, per: Per | None = None) -> None:
        check_eps(eps)
        super().__init__(per, str(eps))
        self.eps = eps

    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _per_sample(prediction, target, self.eps)


def _per_sample(prediction: Tensor, target: Tensor, eps: float) -> Tensor:
    """Return the error of each sample, frame and channel, shape (batch, frames, channels)."""
    prediction, target = at_least_float32(prediction, target)
    return (root_mean_square(prediction - target) / root_mean_square(target).clamp(min=eps)).to(target.dtype)
