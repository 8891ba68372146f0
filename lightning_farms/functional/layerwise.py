"""Maps from the alphas of a network's layers to multipliers of their learning rates or of another hyperparameter.

Every map works in float64 and leaves a layer whose alpha is not finite alone: its multiplier is 1, and it has no
influence on the other layers' multipliers. If all finite alphas are equal (to a relative 1e-9, since the linear map
would blow up rounding errors to its full range), all multipliers are 1.
"""

from __future__ import annotations

import math
from numbers import Real
from typing import Literal

import torch
from torch import Tensor

from lightning_farms.functional.vectors import check_vector, map_finite


def tb_linear_map(alphas: Tensor, lr_min_ratio: float = 0.5, lr_max_ratio: float = 1.5) -> Tensor:
    r"""TempBalance's linear map from alpha to [s1, s2].

    .. math:: m_l = \frac{\alpha_l - \min \alpha}{\max \alpha - \min \alpha} (s_2 - s_1) + s_1

    Args:
        alphas: (L,), one PL_Alpha_Hill per layer; a layer whose alpha is not finite is left alone.
        lr_min_ratio: s1, the multiplier of the smallest alpha, positive.
        lr_max_ratio: s2, the multiplier of the largest alpha, at least s1.

    Returns:
        (L,) multipliers, float64.

    Raises:
        ValueError: not a vector, or ratios out of range.

    Example:
        >>> tb_linear_map(torch.tensor([2.0, 3.0, 4.0]), 0.5, 1.5)
        tensor([0.5000, 1.0000, 1.5000], dtype=torch.float64)

    Reference:
        Zhou et al., Temperature Balancing, NeurIPS 2023, Equation 2; Hu et al., ICML 2025, Section 4.3.
    """
    check_ratios(lr_min_ratio, lr_max_ratio)

    def linear(a: Tensor) -> Tensor:
        return (a - a.min()) / (a.max() - a.min()) * (lr_max_ratio - lr_min_ratio) + lr_min_ratio

    return map_finite(alphas, linear)


def tb_sigmoid(alphas: Tensor, s_low: float = 1.0, s_high: float = 1.0, tau: float = 10.0) -> Tensor:
    r"""TB_Sigmoid: a power of ten that saturates away from the mean alpha.

    .. math:: m_l = 10^{\varphi_l}, \quad \varphi_l = s \left( \frac{1}{1 + e^{-\tau (\alpha_l - \bar\alpha)}} -
              \frac12 \right), \quad s = s_{high} \text{ where } \alpha_l > \bar\alpha \text{ else } s_{low}

    Args:
        alphas: (L,), one PL_Alpha_Hill per layer; a layer whose alpha is not finite is left alone.
        s_low: strength below the mean, not negative; the multiplier stays above 10^(-s_low / 2).
        s_high: strength above the mean, not negative; the multiplier stays below 10^(s_high / 2).
        tau: steepness per unit of alpha, positive.

    Returns:
        (L,) multipliers, float64.

    Raises:
        ValueError: not a vector, or an argument out of range.

    Example:
        >>> tb_sigmoid(torch.tensor([2.0, 3.0, 4.0]))
        tensor([0.3163, 1.0000, 3.1619], dtype=torch.float64)

    Reference:
        Liu et al., Model Balancing, EMNLP Findings 2024; Hu et al., ICML 2025, Section 4.4.
    """
    check_sigmoid(s_low, s_high, tau)

    def sigmoid(a: Tensor) -> Tensor:
        above_mean = a - a.mean()
        strength = torch.where(above_mean > 0, a.new_tensor(s_high), a.new_tensor(s_low))
        return 10 ** (strength * (torch.sigmoid(tau * above_mean) - 0.5))

    return map_finite(alphas, sigmoid)


def tb_sqrt(alphas: Tensor) -> Tensor:
    r"""Multipliers of mean 1, proportional to the root of alpha: :math:`L \sqrt{\alpha_l} / \sum_k \sqrt{\alpha_k}`.

    Args:
        alphas: (L,), one PL_Alpha_Hill per layer, above 1; a layer whose alpha is not finite is left alone.

    Returns:
        (L,) multipliers, float64.

    Raises:
        ValueError: not a vector.

    Example:
        >>> tb_sqrt(torch.tensor([1.0, 4.0, float("nan")]))
        tensor([0.6667, 1.3333, 1.0000], dtype=torch.float64)
    """
    return map_finite(alphas, lambda a: a.sqrt() / a.sqrt().mean())


def tb_log2(alphas: Tensor) -> Tensor:
    r"""Multipliers of mean 1, proportional to the logarithm: :math:`L \log_2 \alpha_l / \sum_k \log_2 \alpha_k`.

    Args:
        alphas: (L,), one PL_Alpha_Hill per layer, above 1; a layer whose alpha is not finite is left alone.

    Returns:
        (L,) multipliers, float64.

    Raises:
        ValueError: not a vector.

    Example:
        >>> tb_log2(torch.tensor([2.0, 8.0]))
        tensor([0.5000, 1.5000], dtype=torch.float64)
    """
    return map_finite(alphas, lambda a: a.log2() / a.log2().mean())


def tb_step(alphas: Tensor, lr_min_ratio: float = 0.5, lr_max_ratio: float = 1.5) -> Tensor:
    r"""Multipliers by rank: of L layers, the one of rank r (0 for the smallest alpha) gets :math:`s_1 + (s_2-s_1) r/L`.

    Layers with equal alphas all get the mean of their ranks.

    Args:
        alphas: (L,), one PL_Alpha_Hill per layer; a layer whose alpha is not finite is left alone.
        lr_min_ratio: s1, the multiplier of the smallest alpha, positive.
        lr_max_ratio: s2, at least s1; never quite reached.

    Returns:
        (L,) multipliers, float64.

    Raises:
        ValueError: not a vector, or ratios out of range.

    Example:
        >>> tb_step(torch.tensor([4.0, 2.0]))
        tensor([1.0000, 0.5000], dtype=torch.float64)
    """
    check_ratios(lr_min_ratio, lr_max_ratio)

    def by_rank(a: Tensor) -> Tensor:
        smaller = (a.unsqueeze(0) < a.unsqueeze(1)).sum(1)
        equal = (a.unsqueeze(0) == a.unsqueeze(1)).sum(1)
        rank = smaller + (equal - 1).to(a) / 2
        return lr_min_ratio + (lr_max_ratio - lr_min_ratio) * rank / a.numel()

    return map_finite(alphas, by_rank)


def normalize_multipliers(
    multipliers: Tensor,
    weights: Tensor,
    mean: Literal["mean", "geometric"] = "mean",
    low: float = 0.0,
    high: float = math.inf,
) -> Tensor:
    r"""Scale multipliers by one common factor, within bounds, so that their weighted mean is 1.

    .. math:: m'_l = \min(\max(c \, m_l, low), high), \quad \sum_l w_l m'_l = \sum_l w_l
              \quad \text{or} \quad \sum_l w_l \ln m'_l = 0

    Layer-wise and common rates then differ only in how they are distributed over the layers, not in their overall
    size. Ratios of multipliers stay as they are unless a bound is met.

    Args:
        multipliers: (L,), finite and positive.
        weights: w, (L,), positive: the number of parameters of each layer.
        mean: ``"mean"`` for the arithmetic mean, ``"geometric"`` for the geometric one.
        low: least multiplier, in [0, 1].
        high: largest multiplier, at least 1.

    Returns:
        (L,) multipliers, float64.

    Raises:
        ValueError: not vectors of one length, an unknown mean, or bounds that leave no room for a mean of 1.

    Example:
        >>> normalize_multipliers(torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0]))
        tensor([0.5000, 1.5000], dtype=torch.float64)
        >>> normalize_multipliers(torch.tensor([1.0, 4.0]), torch.tensor([1.0, 1.0]), "geometric")
        tensor([0.5000, 2.0000], dtype=torch.float64)
    """
    check_vector("multipliers", multipliers)
    check_vector("weights", weights, length=multipliers.numel())
    if mean not in ("mean", "geometric"):
        raise ValueError(f'Expected argument `mean` to be "mean" or "geometric", but got {mean!r}.')
    if not 0 <= low <= 1 <= high:
        raise ValueError(
            f"Expected arguments `low` and `high` to satisfy 0 <= low <= 1 <= high, but got {low}, {high}."
        )
    values, shares = multipliers.to(torch.float64), weights.to(torch.float64)
    if values.numel() == 0:
        return values
    return (values * _common_factor(values, shares / shares.sum(), mean, low, high)).clamp(low, high)


def _common_factor(values: Tensor, shares: Tensor, mean: str, low: float, high: float) -> Tensor:
    r"""Find the factor c with :math:`\sum_l s_l f(clip(c v_l)) = f(1)`, f being the identity or the logarithm.

    Between the corners, where a multiplier meets a bound, the sum is linear in f(c): the two corners around the
    solution are found, and between them it is a quotient.
    """

    def moment(numbers: Tensor) -> Tensor:
        return numbers.log() if mean == "geometric" else numbers

    corners = torch.cat([low / values, high / values])
    corners = corners[corners.isfinite()].sort().values
    too_small = (shares * moment((corners.unsqueeze(1) * values).clamp(low, high))).sum(1) <= moment(
        values.new_ones(())
    )
    below, above = corners[too_small], corners[~too_small]
    least = below[-1] if len(below) else values.new_zeros(())
    inside = (least + above[0]) / 2 if len(above) else 2 * least + 1
    clipped = (inside * values).clamp(low, high)
    free = (clipped > low) & (clipped < high)
    if not bool(free.any()):
        return least
    bound = (shares * moment(clipped))[~free].sum()
    if mean == "geometric":
        return (-(bound + (shares * values.log())[free].sum()) / shares[free].sum()).exp()
    return (1 - bound) / (shares * values)[free].sum()


def check_ratios(low: float, high: float, names: tuple[str, str] = ("lr_min_ratio", "lr_max_ratio")) -> None:
    """Raise an error that names the two arguments unless 0 < low <= high < infinity."""
    for name, value in zip(names, (low, high), strict=True):
        _check_number(name, value)
    if not (0 < low <= high < math.inf):
        raise ValueError(
            f"Expected arguments `{names[0]}` and `{names[1]}` to satisfy 0 < {names[0]} <= {names[1]}, "
            f"but got {low} and {high}."
        )


def _check_number(name: str, value: object) -> None:
    """Raise a TypeError unless it is a number; another object was, as a rule, meant for an argument given by name."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(
            f"Expected argument `{name}` to be a number, but got {value!r}. Give other arguments by their names."
        )


def check_sigmoid(s_low: float, s_high: float, tau: float) -> None:
    """Raise unless s_low and s_high are finite and not negative, and tau is finite and positive."""
    for name, value in (("s_low", s_low), ("s_high", s_high), ("tau", tau)):
        _check_number(name, value)
    for name, value in (("s_low", s_low), ("s_high", s_high)):
        if not 0 <= value < math.inf:
            raise ValueError(f"Expected argument `{name}` to be finite and not negative, but got {value}.")
    if not 0 < tau < math.inf:
        raise ValueError(f"Expected argument `tau` to be finite and positive, but got {tau}.")
