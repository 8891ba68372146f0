"""Error on the domain's edges (PDEBench's BD)."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from lightning_farms.metrics._accumulation import FieldMetric
from lightning_farms.metrics._fields import Per, at_least_float32, average, check_fields, check_per, norm


def boundary_rmse(prediction: Tensor, target: Tensor, *, per: Per | None = None) -> Tensor:
    r"""Root-mean-square error on the four edges, for each sample, frame and channel, then averaged (PDEBench's BD).

    .. math::
        \frac{1}{B T C} \sum_{b, t, c} \sqrt{\frac{
            \sum_y e_{b, 1, y, t, c}^2 + \sum_y e_{b, n_x, y, t, c}^2
            + \sum_x e_{b, x, 1, t, c}^2 + \sum_x e_{b, x, n_y, t, c}^2}{2 n_x + 2 n_y}},
        \qquad e = \hat u - u

    Each corner lies on two edges and counts twice, as in PDEBench. As PDEBench leaves the given first frames out, pass
    only the predicted ones. Half-precision input is computed in float32.

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
        >>> target = torch.zeros(1, 4, 4, 1, 1)
        >>> inside = torch.nn.functional.pad(torch.ones(2, 2), (1, 1, 1, 1)).reshape(1, 4, 4, 1, 1)
        >>> float(boundary_rmse(inside, target)), float(boundary_rmse(inside + 1, target))
        (0.0, 1.0)

    Reference:
        Takamoto et al., "PDEBench: An Extensive Benchmark for Scientific Machine Learning", NeurIPS 2022, the
        metric bRMSE.
    """
    check_fields(prediction, target)
    check_per(per)
    return average(_per_sample(prediction, target).mean(0), per)


class BoundaryRMSE(FieldMetric):
    """PDEBench's BD: root-mean-square error on the four edges, per sample, frame and channel, then averaged.

    See `boundary_rmse` for the formula. Pass only the predicted frames, not the given ones. Exact for batches of
    any size: each sample weighs the same.

    Args:
        per: None, "channel", "frame" or "frame_and_channel", for a result of shape (), (channels,), (frames,) or
            (frames, channels).

    Raises:
        ValueError: If ``per`` is not one of its allowed values.

    Example:
        >>> import torch
        >>> metric = BoundaryRMSE()
        >>> target = torch.zeros(2, 4, 4, 3, 1)
        >>> metric.update(target + 1.5, target)
        >>> float(metric.compute())
        1.5
    """

    def __init__(self, *, per: Per | None = None) -> None:
        super().__init__(per)

    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _per_sample(prediction, target)


def _per_sample(prediction: Tensor, target: Tensor) -> Tensor:
    """Return the error of each sample, frame and channel, shape (batch, frames, channels)."""
    prediction, target = at_least_float32(_edges(prediction), _edges(target))
    return (norm(prediction - target, (1,)) / math.sqrt(target.shape[1])).to(target.dtype)


def _edges(fields: Tensor) -> Tensor:
    """Concatenate the four edges to (batch, 2 X + 2 Y, frames, channels)."""
    return torch.cat((fields[:, 0], fields[:, -1], fields[:, :, 0], fields[:, :, -1]), dim=1)
