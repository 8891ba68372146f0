"""Error of low, middle and high spatial frequencies (PDEBench's F)."""

from __future__ import annotations

import torch
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


def fourier_rmse(prediction: Tensor, target: Tensor, *, low: int = 4, high: int = 12, per: Per | None = None) -> Tensor:
    r"""Error of low, middle and high spatial frequencies (PDEBench's F low, mid and high).

    With :math:`e = \hat u - u` and its two-dimensional discrete Fourier transform :math:`\hat e_{ij}`, the bins are

    .. math::
        E_k = \frac{1}{n_x n_y} \sqrt{\frac{1}{B} \sum_b
              \sum_{\lfloor \sqrt{i^2 + j^2} \rfloor = k} \lvert \hat e_{b, ij} \rvert^2},
        \qquad 0 \le i < n_x / 2, \; 0 \le j < n_y / 2, \; k < \min(n_x, n_y) / 2

    and the result is the mean of :math:`E_k` over k < low, over low <= k < high, and over k >= high. As in PDEBench,
    i and j count waves per side of the domain, and only the quadrant in which neither is negative is used. The root is
    taken after the mean over samples, so averaging the values of batches gives another number; `FourierRMSE`
    accumulates batches correctly. As PDEBench leaves the given first frames out, pass only the predicted ones.

    Args:
        prediction: Predicted fields, (batch, X, Y, frames, channels).
        target: True fields, the same shape, in the same units; X and Y may differ.
        low: First bin of the middle band, at least 1.
        high: First bin of the high band, more than ``low`` and less than half of the shorter side.
        per: Give the error for each "channel", each "frame" or each "frame_and_channel"; a single number by default.

    Returns:
        The errors of the three bands in units of the fields, of shape (3,), (3, channels), (3, frames) or (3, frames,
        channels) as ``per`` asks.

    Raises:
        ValueError: If the shapes differ, are not 5-dimensional or hold no elements, if a band would be empty, or if
            ``per`` is not one of its allowed values.
        TypeError: If an argument is not a real floating-point tensor.

    Example:
        >>> import torch
        >>> x = torch.arange(32) / 32
        >>> wave = torch.cos(2 * torch.pi * 5 * x).reshape(1, 32, 1, 1, 1).expand(1, 32, 32, 1, 1)
        >>> fourier_rmse(8 * wave, 0 * wave).round(decimals=4)  # an amplitude of 8: 8 / 2 in one of 8 middle bins
        tensor([0.0000, 0.5000, 0.0000])

    Reference:
        Takamoto et al., "PDEBench: An Extensive Benchmark for Scientific Machine Learning", NeurIPS 2022, the
        metrics fRMSE.
    """
    check_fields(prediction, target)
    _check_bands(low, high)
    check_per(per)
    errors = _bands(_per_sample(prediction, target, high).mean(0), low, high)
    return average(errors, per).to(at_least_float32(prediction, target)[0].dtype)


class FourierRMSE(FieldMetric):
    """PDEBench's F: error of low, middle and high spatial frequencies over all samples.

    See `fourier_rmse` for the formula. Pass only the predicted frames, not the given ones. Exact for batches of any
    size. To log the bands by name, wrap it in torchmetrics' wrapper:
    ``ClasswiseWrapper(FourierRMSE(), labels=["low", "mid", "high"])``.

    Args:
        low: First bin of the middle band, at least 1.
        high: First bin of the high band, more than ``low`` and less than half of the fields' shorter side.
        per: None, "channel", "frame" or "frame_and_channel", for a result of shape (3,), (3, channels), (3, frames) or
            (3, frames, channels).

    Raises:
        ValueError: If the bands are not in order, or ``per`` is not one of its allowed values.

    Example:
        >>> import torch
        >>> metric = FourierRMSE(low=2, high=5)
        >>> target = torch.zeros(1, 16, 16, 1, 1)
        >>> for error in (3.0, -4.0):
        ...     metric.update(target + error, target)  # nothing but bin 0
        >>> metric.compute()
        tensor([1.7678, 0.0000, 0.0000])
    """

    def __init__(self, *, low: int = 4, high: int = 12, per: Per | None = None) -> None:
        _check_bands(low, high)
        super().__init__(per)
        self.low = low
        self.high = high

    def _per_sample(self, prediction: Tensor, target: Tensor) -> Tensor:
        return _per_sample(prediction, target, self.high)

    def _error(self, statistic: Tensor) -> Tensor:
        return _bands(statistic, self.low, self.high)


def _check_bands(low: int, high: int) -> None:
    if not 0 < low < high:
        raise ValueError(
            f"Expected arguments `low` and `high` to be bins with 0 < low < high, but got {low} and {high}."
        )


def _per_sample(prediction: Tensor, target: Tensor, high: int) -> Tensor:
    """Return the squared error of each bin, (batch, bins, frames, channels)."""
    rows, columns = target.shape[1] // 2, target.shape[2] // 2
    bins = min(rows, columns)
    if bins <= high:
        raise ValueError(
            f"Expected argument `high` to be less than {bins}, half of the shorter side of fields of "
            f"{target.shape[1]} x {target.shape[2]} points, but got {high}. Choose lower `low` and `high`."
        )
    prediction, target = at_least_float32(prediction, target)
    amplitudes = torch.fft.rfft2(prediction - target, dim=(1, 2), norm="forward")[:, :rows, :columns]
    parts = torch.view_as_real(amplitudes).to(accumulation_dtype(target.device))
    energy = parts.square().sum(-1).flatten(1, 2)
    empty = energy.new_zeros(len(energy), bins + 1, *energy.shape[2:])
    return empty.index_add(1, _bin_of_modes(rows, columns, bins, energy), energy)[:, :bins]


def _bin_of_modes(rows: int, columns: int, bins: int, like: Tensor) -> Tensor:
    """Return the bin of each mode, (rows * columns,); modes beyond the last bin share one extra bin."""
    i = torch.arange(rows, device=like.device, dtype=like.dtype)
    j = torch.arange(columns, device=like.device, dtype=like.dtype)
    squares = i[:, None] ** 2 + j**2
    return squares.sqrt().floor().clamp(max=bins).long().flatten()


def _bands(energy: Tensor, low: int, high: int) -> Tensor:
    """Return the three bands' errors (3, frames, channels), given the bins' mean energy (bins, frames, channels)."""
    errors = root(energy)
    return torch.stack((errors[:low].mean(0), errors[low:high].mean(0), errors[high:].mean(0)))
