"""Relative L2 error over space and frames (DPOT's L2RE)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.linalg import vector_norm

from lightning_farms.metrics._accumulation import FieldMetric
from lightning_farms.metrics._fields import Per, at_least_float32, average, check_eps, check_fields, check_per, norm


def relative_l2_error(prediction: Tensor, target: Tensor, *, eps: float = 1e-8, per: Per | None = None) -> Tensor:
    r"""Relative L2 error per channel over space and frames, averaged over channels and samples (DPOT's L2RE).

    .. math::
        \frac{1}{B C} \sum_{b, c}
        \frac{\lVert \hat u_{b, \cdot, \cdot, \cdot, c} - u_{b, \cdot, \cdot, \cdot, c} \rVert_2}
             {\max(\lVert u_{b, \cdot, \cdot, \cdot, c} \rVert_2, \varepsilon)}

    Differentiable in ``prediction`` (the subgradient at a perfect prediction is zero), so it also serves as the loss.
    Half-precision input is computed in float32. Squares are summed in the fields' dtype, as usual for a loss; if those
    of the target overflow it (in float32 from about 1e16 on), the result is NaN. `RelativeL2Error` sums in float64.

    Args:
        prediction: Predicted fields, (batch, X, Y, frames, channels).
        target: True fields, the same shape, in the same units.
        eps: Floor of the denominator, in units of the fields times the square root of the number of points. A channel
            whose target is zero everywhere has no relative error; with the floor it contributes its absolute error
            divided by ``eps``: large and conspicuous, but finite, and exactly zero if it was predicted exactly.
        per: Give the error for each "channel", each "frame" or each "frame_and_channel"; a single number by default.
            For frames the norms run over space only, so their mean is not the error over all frames together.

    Returns:
        The error, a scalar, or of shape (channels,), (frames,) or (frames, channels) as ``per`` asks. 0 is perfect, 1
        is as good as predicting zero.

    Raises:
        ValueError: If the shapes differ, are not 5-dimensional or hold no elements, if ``eps`` is not positive, or if
            ``per`` is not one of its allowed values.
        TypeError: If an argument is not a real floating-point tensor.

    Example:
        >>> import torch
        >>> target = torch.ones(1, 2, 2, 1, 2)
        >>> prediction = target * torch.tensor([1.1, 0.7])
        >>> round(float(relative_l2_error(prediction, target)), 6)
        0.2
        >>> relative_l2_error(prediction, target, per="channel")
        tensor([0.1000, 0.3000])

    Reference:
        Hao et al., "DPOT: Auto-Regressive Denoising Operator Transformer for Large-Scale PDE Pre-Training", ICML 2024,
        the metric L2RE.
    """
    check_fields(prediction, target)
    check_eps(eps)
    check_per(per)
    return average(_per_sample(prediction, target, eps, over_frames=_over_frames(per)).mean(0), per)


class RelativeL2Error(FieldMetric):
    """Relative L2 error per channel over space and frames, averaged over channels and samples (DPOT's L2RE).

    See `relative_l2_error` for the formula and for targets that are zero everywhere. Exact for batches of any
    size: each sample weighs the same. The number of frames may differ between batches unless ``per`` keeps frames
    apart.

    Args:
        eps: Floor of the denominator, positive.
        per: None, "channel", "frame" or "frame_and_channel", for a result of shape (), (channels,), (frames,) or
            (frames, channels).

    Raises:
        ValueError: If ``eps`` is not positive, or ``per`` is not one of its allowed values.

    Example:
        >>> import torch
        >>> metric = RelativeL2Error()
        >>> target = torch.ones(3, 4, 4, 2, 1)
        >>> metric.update(1.1 * target[:1], target[:1])
        >>> metric.update(0.6 * target[1:], target[1:])
        >>> round(float(metric.compute()), 6)
        0.3
    """

    def __init__(self, *, eps: float = 1e-8, per: Per | None = None) -> None:
        check_eps(eps)
        super().__init__(per, f"{eps}_{_over_frames(per)}")
        self.eps = eps

    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _per_sample(prediction, target, self.eps, over_frames=_over_frames(self.per), norm_of=norm)


def _over_frames(per: Per | None) -> bool:
    """Whether the norms run over frames as well as over space."""
    return per in (None, "channel")


def _per_sample(
    prediction: Tensor, target: Tensor, eps: float, *, over_frames: bool, norm_of: Callable[..., Tensor] = vector_norm
) -> Tensor:
    """Return the relative errors (batch, frames, channels), with a single frame if norms run over frames."""
    prediction, target = at_least_float32(prediction, target)
    dims = (1, 2, 3) if over_frames else (1, 2)
    error = norm_of(prediction - target, dim=dims, keepdim=over_frames)
    scale = norm_of(target, dim=dims, keepdim=over_frames).clamp(min=eps)
    ratio: Tensor = error / scale.masked_fill(scale.isinf(), torch.nan)  # else an overflow would give an error of zero
    return ratio[:, 0, 0] if over_frames else ratio
