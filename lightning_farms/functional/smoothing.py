"""Means to steady layer-wise control: smoothed and clipped alphas, ramped multipliers, a search for an outlier."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_farms.functional.vectors import check_vector

_FEWEST = 6  # among fewer layers, chance alone sets one apart too often


def moving_average(previous: Tensor, current: Tensor, decay: float) -> Tensor:
    r"""Exponential moving average of each layer's alpha over analyses.

    .. math:: \bar a_l \leftarrow \beta \, \bar a_l + (1 - \beta) \, a_l

    A layer whose ``previous`` value is not finite starts with its ``current`` value; a ``current`` value that is not
    finite stays as it is.

    Args:
        previous: (L,), the average so far; a value that is not finite means that there is none.
        current: (L,), the new alphas.
        decay: beta, the weight of the past, in [0, 1).

    Returns:
        (L,), float64.

    Raises:
        ValueError: not vectors of one length, or ``decay`` out of range.

    Example:
        >>> moving_average(torch.tensor([2.0, float("nan")]), torch.tensor([3.0, 4.0]), 0.5)
        tensor([2.5000, 4.0000], dtype=torch.float64)
    """
    check_vector("previous", previous)
    check_vector("current", current, length=previous.numel())
    if not 0 <= decay < 1:
        raise ValueError(f"Expected argument `decay` to be in [0, 1), but got {decay}.")
    old, new = previous.to(torch.float64), current.to(torch.float64)
    return torch.where(old.isfinite(), decay * old + (1 - decay) * new, new)


def clip_to_quantiles(alphas: Tensor, quantile: float) -> Tensor:
    """Clip alphas to the q-th and the (1 - q)-th quantile of the finite ones.

    Quantiles are interpolated linearly: for L alphas, a ``quantile`` of at least 1 / (L - 1) moves the largest and the
    smallest all the way to their neighbours.

    Args:
        alphas: (L,); values that are not finite stay as they are, and do not count.
        quantile: q, in [0, 0.5); 0 changes nothing.

    Returns:
        (L,), float64.

    Raises:
        ValueError: not a vector, or ``quantile`` out of range.

    Example:
        >>> clip_to_quantiles(torch.tensor([2.0, 2.1, 2.2, 2.3, 9.0]), 0.25)
        tensor([2.1000, 2.1000, 2.2000, 2.3000, 2.3000], dtype=torch.float64)
    """
    check_vector("alphas", alphas)
    if not 0 <= quantile < 0.5:
        raise ValueError(f"Expected argument `quantile` to be in [0, 0.5), but got {quantile}.")
    values = alphas.to(torch.float64)
    finite = values.isfinite()
    if not quantile or not bool(finite.any()):
        return values
    low, high = values[finite].quantile(values.new_tensor([quantile, 1 - quantile]))
    return torch.where(finite, values.clamp(low, high), values)


def ramp(start: Tensor, target: Tensor, step: int, steps: int) -> Tensor:
    r"""Interpolate multipliers linearly from the old ones to the new ones.

    .. math:: m = m_0 + (m_1 - m_0) \min\left(1, \frac{i}{N}\right)

    Args:
        start: (L,), multipliers that were in force at the analysis.
        target: (L,), multipliers that the analysis asks for.
        step: i, number of the optimizer step after the analysis, the first being 1.
        steps: N, length of the ramp; 0 for none.

    Returns:
        (L,) multipliers of the i-th step; ``target`` itself from the N-th step on.

    Raises:
        ValueError: not vectors of one length, or a negative number of steps.

    Example:
        >>> ramp(torch.tensor([1.0, 1.0]), torch.tensor([3.0, 0.5]), step=1, steps=4)
        tensor([1.5000, 0.8750])

    Reference:
        He et al., One LR Doesn't Fit All, ICML 2026 (arXiv 2605.22297).
    """
    check_vector("start", start)
    check_vector("target", target, length=start.numel())
    for name, value in (("step", step), ("steps", steps)):
        if value < 0:
            raise ValueError(f"Expected argument `{name}` to be 0 or more, but got {value}.")
    return target if step >= steps else torch.lerp(start, target, step / steps)


def squeezing_outlier(multipliers: Tensor, share: float = 0.25) -> int | None:
    """Index of the one layer that takes up nearly the whole range of the multipliers.

    Without this layer, the others' multipliers span at most ``share`` of the range of all.

    Args:
        multipliers: (L,), multipliers of the layers that are balanced.
        share: share of the range, in (0, 1).

    Returns:
        The index; None if there is no such layer, or there are fewer than six layers.

    Raises:
        ValueError: not a vector, or ``share`` out of range.

    Example:
        >>> squeezing_outlier(torch.tensor([0.5, 0.51, 0.52, 0.53, 0.55, 1.5]))
        5
        >>> squeezing_outlier(torch.tensor([0.5, 0.7, 0.9, 1.0, 1.2, 1.5])) is None
        True
    """
    check_vector("multipliers", multipliers)
    if not 0 < share < 1:
        raise ValueError(f"Expected argument `share` to be in (0, 1), but got {share}.")
    if multipliers.numel() < _FEWEST:
        return None
    ordered, order = multipliers.sort()
    span = ordered[-1] - ordered[0]
    without_last, without_first = ordered[-2] - ordered[0], ordered[-1] - ordered[1]
    if bool(torch.minimum(without_first, without_last) > share * span) or not bool(span > 0):
        return None
    return int(order[-1] if bool(without_last < without_first) else order[0])
