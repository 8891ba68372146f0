"""Errors of predicted fields as plain functions; fields are laid out as (batch, X, Y, frames, channels)."""

from __future__ import annotations

import torch
from torch import Tensor

_LAYOUT = "(batch, X, Y, frames, channels)"


def relative_l2_error(prediction: Tensor, target: Tensor, *, eps: float = 1e-8) -> Tensor:
    r"""Relative L2 error per channel over space and frames, averaged over channels and samples (DPOT's L2RE).

    .. math::
        \frac{1}{B C} \sum_{b, c}
        \frac{\lVert \hat u_{b, \cdot, \cdot, \cdot, c} - u_{b, \cdot, \cdot, \cdot, c} \rVert_2}
             {\max(\lVert u_{b, \cdot, \cdot, \cdot, c} \rVert_2, \varepsilon)}

    Differentiable in ``prediction`` (the subgradient at a perfect prediction is zero), so it also serves as the loss.
    Half-precision input is computed in float32.

    Args:
        prediction: Predicted fields, (batch, X, Y, frames, channels).
        target: True fields, the same shape, in the same units.
        eps: Floor of the denominator, in units of the fields times the square root of the number of points. A channel
            whose target is zero everywhere has no relative error; with the floor it contributes its absolute error
            divided by ``eps``: large and conspicuous, but finite, and exactly zero if it was predicted exactly.

    Returns:
        The error, a scalar; 0 is perfect, 1 is as good as predicting zero.

    Raises:
        ValueError: If the shapes differ, are not 5-dimensional or hold no elements, or if ``eps`` is not positive.
        TypeError: If an argument is not a real floating-point tensor.

    Example:
        >>> import torch
        >>> target = torch.ones(1, 2, 2, 1, 2)
        >>> prediction = target * torch.tensor([1.1, 0.7])
        >>> round(float(relative_l2_error(prediction, target)), 6)
        0.2

    Reference:
        Hao et al., "DPOT: Auto-Regressive Denoising Operator Transformer for Large-Scale PDE Pre-Training", ICML 2024,
        the metric L2RE.
    """
    check_fields(prediction, target, eps)
    return relative_l2_per_sample(prediction, target, eps).mean()


def normalized_rmse(prediction: Tensor, target: Tensor, *, eps: float = 1e-8) -> Tensor:
    r"""Root-mean-square error over space, relative to the target's, for each frame and channel on its own (PDEBench).

    .. math::
        \frac{1}{B T C} \sum_{b, t, c}
        \frac{\sqrt{\langle (\hat u_{b, \cdot, \cdot, t, c} - u_{b, \cdot, \cdot, t, c})^2 \rangle}}
             {\max(\sqrt{\langle u_{b, \cdot, \cdot, t, c}^2 \rangle}, \varepsilon)}

    PDEBench leaves the given first frames out: pass only the predicted ones.

    Args:
        prediction: Predicted fields, (batch, X, Y, frames, channels).
        target: True fields, the same shape, in the same units.
        eps: Floor of the denominator, in units of the fields. A frame whose target is zero everywhere contributes its
            absolute error divided by ``eps``: large and conspicuous, but finite (PDEBench's program gives inf or NaN).

    Returns:
        The error, a scalar; 0 is perfect, 1 is as good as predicting zero.

    Raises:
        ValueError: If the shapes differ, are not 5-dimensional or hold no elements, or if ``eps`` is not positive.
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
    check_fields(prediction, target, eps)
    return normalized_rmse_per_sample(prediction, target, eps).mean()


def check_fields(prediction: Tensor, target: Tensor, eps: float) -> None:
    """Refuse what the errors of this file are not defined for.

    Args:
        prediction: Predicted fields.
        target: True fields.
        eps: Floor of the denominators.

    Raises:
        ValueError: If the shapes differ, are not 5-dimensional or hold no elements, or if ``eps`` is not positive.
        TypeError: If an argument is not a real floating-point tensor.
    """
    for name, value in (("prediction", prediction), ("target", target)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"Expected argument `{name}` to be a real floating-point tensor, but got {kind}.")
    if target.ndim != 5 or target.numel() == 0:
        raise ValueError(
            f"Expected argument `target` to be non-empty and of shape {_LAYOUT}, but got {tuple(target.shape)}."
        )
    if prediction.shape != target.shape:
        raise ValueError(
            f"Expected argument `prediction` to be of the target's shape {tuple(target.shape)}, "
            f"but got {tuple(prediction.shape)}."
        )
    if not eps > 0:
        raise ValueError(f"Expected argument `eps` to be positive, but got {eps}.")


def relative_l2_per_sample(prediction: Tensor, target: Tensor, eps: float) -> Tensor:
    """Relative L2 error of each sample: a stage of `relative_l2_error`, without checks.

    Args:
        prediction: Predicted fields, (batch, X, Y, frames, channels).
        target: True fields, the same shape.
        eps: Floor of the denominator.

    Returns:
        (batch,), at least float32.
    """
    prediction, target = _at_least_float32(prediction, target)
    error = torch.linalg.vector_norm(prediction - target, dim=(1, 2, 3))
    scale = torch.linalg.vector_norm(target, dim=(1, 2, 3)).clamp(min=eps)
    ratio: Tensor = error / scale
    return ratio.mean(dim=1)


def normalized_rmse_per_sample(prediction: Tensor, target: Tensor, eps: float) -> Tensor:
    """Normalised RMSE of each sample: a stage of `normalized_rmse`, without checks.

    Args:
        prediction: Predicted fields, (batch, X, Y, frames, channels).
        target: True fields, the same shape.
        eps: Floor of the denominator.

    Returns:
        (batch,), at least float32.
    """
    prediction, target = _at_least_float32(prediction, target)
    points = target.shape[1] * target.shape[2]
    error = torch.linalg.vector_norm(prediction - target, dim=(1, 2)) / points**0.5
    scale = (torch.linalg.vector_norm(target, dim=(1, 2)) / points**0.5).clamp(min=eps)
    ratio: Tensor = error / scale
    return ratio.mean(dim=(1, 2))


def _at_least_float32(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return prediction.to(dtype), target.to(dtype)
