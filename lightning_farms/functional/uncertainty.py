r"""Uncertainty of a power-law fit: bootstrap intervals of its exponent and a goodness-of-fit p-value.

Both figures are Monte Carlo estimates from an integer seed. The random numbers are drawn on the CPU by a separate
generator, and the same numbers serve every spectrum of a batch: a result does not depend on the device, on what else
is in the batch, or on the global random state, and does not change that state.

Both treat the eigenvalues as independent samples. Those of one matrix repel each other, and windows of one matrix
overlap: for the spectrum of a matrix the figures measure the fit's own sampling error, and are not a statement of
confidence about the matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_farms.functional.power_law import PowerLawFit

_REFIT_ELEMENTS = 2**20  # float64 entries of one block of resampled spectra: 8 MiB

FitFunction = Callable[[Tensor], PowerLawFit]


class Interval(NamedTuple):
    """Ends of an interval of alpha; both have the spectra's leading shape, and are NaN where there is no interval.

    Attributes:
        low: lower end.
        high: upper end.
    """

    low: Tensor
    high: Tensor


def bootstrap_interval(
    eigenvalues: Tensor, fit: FitFunction, *, draws: int = 200, level: float = 0.95, seed: int = 0
) -> Interval:
    r"""Percentile interval of alpha from refits of the resampled spectrum (non-parametric bootstrap).

    Each draw takes N of the N eigenvalues with replacement and fits them anew, including ``xmin``. The interval's ends
    are the sorted alphas at the shares :math:`(1 \mp \text{level}) / 2`, rounded outwards.

    The coverage is about the stated level if the eigenvalues are independent samples. Those of one matrix repel each
    other and windows overlap, so for a matrix the interval shows the fit's sampling error and no more.

    Args:
        eigenvalues: (..., N), any order, not negative, in units of the squared weight; N at least 2.
        fit: function from spectra (..., N) to their fits, e.g. :func:`~lightning_farms.functional.fit_hill`.
        draws: number of refits, at least 1.
        level: share of the refits between the ends, within (0, 1).
        seed: seed of the resampling.

    Returns:
        The interval, float64; NaN where the spectrum itself has no finite alpha. Refits whose alpha is NaN are left
        out; an infinite alpha (equal eigenvalues) counts as the largest.

    Raises:
        ValueError: ``draws`` or ``level`` out of range.

    Example:
        >>> from lightning_farms.functional import fit_hill
        >>> low, high = bootstrap_interval(torch.arange(1.0, 101.0), fit_hill)
        >>> round(fit_hill(torch.arange(1.0, 101.0)).alpha.item(), 2), round(low.item(), 2), round(high.item(), 2)
        (3.68, 2.9, 4.96)

    Reference:
        Efron, Annals of Statistics 7 (1979); Clauset, Shalizi, Newman, SIAM Review 51 (2009), Section 3.
    """
    _require_positive(draws)
    if not 0 < level < 1:
        raise ValueError(f"Expected argument `level` to be between 0 and 1, but got {level}.")
    fitted = fit(eigenvalues)
    values = eigenvalues.to(torch.float64)
    count = values.shape[-1]

    def resample(uniform: Tensor) -> Tensor:
        return values[..., (uniform * count).long()].movedim(-2, 0)

    alphas = _refits(values, fit, resample, draws=draws, seed=seed).alpha.sort(dim=0).values
    last = (~alphas.isnan()).sum(0) - 1  # NaN is sorted last
    lower = ((1 - level) / 2 * last).floor()
    upper = ((1 + level) / 2 * last).ceil()
    ends = (alphas.gather(0, end.long().clamp(min=0).unsqueeze(0)).squeeze(0) for end in (lower, upper))
    return Interval(*(end.masked_fill(~fitted.alpha.isfinite(), torch.nan) for end in ends))


def goodness_of_fit(eigenvalues: Tensor, fit: FitFunction, *, draws: int = 200, seed: int = 0) -> Tensor:
    r"""Semi-parametric p-value: share of samples drawn from the fitted law that their own fit matches no better.

    Each draw replaces the n eigenvalues of the tail by samples of the fitted law,
    :math:`x_{min} (1 - u)^{-1/(\alpha - 1)}`, and those below it by a resample of themselves that keeps the largest,
    and fits the result anew: :math:`p = \#\{D_{draw} \geq D\} / \text{draws}`. A small p (the reference proposes 0.1)
    speaks against a power law; a large p does not prove one. The reference lets the number of samples in the tail
    vary as well; here it is that of the fit, which makes p exact for tails of a fixed rank (Hill) too.

    The eigenvalues are treated as independent samples. Those of one matrix repel each other and windows overlap, so
    for a matrix p is not a probability: it tells which spectra a power law fits better.

    Args:
        eigenvalues: (..., N), any order, not negative, in units of the squared weight; N at least 2.
        fit: function from spectra (..., N) to their fits, e.g. :func:`~lightning_farms.functional.fit_ks`.
        draws: number of samples, at least 1; p is a multiple of 1 / draws.
        seed: seed of the samples.

    Returns:
        (...), the p-value, within [0, 1], float64; NaN where the spectrum itself has no finite alpha. Draws without
        a fit are left out.

    Raises:
        ValueError: ``draws`` out of range.

    Example:
        >>> from lightning_farms.functional import fit_hill
        >>> power_law = torch.linspace(0.002, 1, 500) ** -2.0
        >>> uniform = torch.linspace(1, 3, 500)
        >>> goodness_of_fit(torch.stack([power_law, uniform]), fit_hill)
        tensor([1., 0.], dtype=torch.float64)

    Reference:
        Clauset, Shalizi, Newman, SIAM Review 51 (2009), Section 4.1.
    """
    _require_positive(draws)
    fitted = fit(eigenvalues)
    ordered = eigenvalues.to(torch.float64).sort(dim=-1).values
    position = torch.arange(ordered.shape[-1], device=ordered.device)
    xmin, scale = fitted.xmin.unsqueeze(-1), 1 / (fitted.alpha.unsqueeze(-1) - 1)
    below = ordered.shape[-1] - fitted.tail_size.unsqueeze(-1)

    def resample(uniform: Tensor) -> Tensor:
        uniform = uniform.reshape(-1, *[1] * (ordered.ndim - 1), ordered.shape[-1])
        index = torch.where(position == below - 1, position, (uniform * below).long())
        body = ordered.expand(index.shape).gather(-1, index)
        tail = xmin * ((-uniform).log1p() * -scale).exp()  # not a power: its last bit depends on the place in the batch
        return torch.where(position < below, body, tail)

    distances = _refits(ordered, fit, resample, draws=draws, seed=seed).ks_distance
    p_value = (distances >= fitted.ks_distance).sum(0) / (~distances.isnan()).sum(0).to(torch.float64)
    return p_value.masked_fill(~fitted.alpha.isfinite(), torch.nan)


def _require_positive(draws: int) -> None:
    if draws < 1:
        raise ValueError(f"Expected argument `draws` to be at least 1, but got {draws}.")


def _refits(
    values: Tensor, fit: FitFunction, resample: Callable[[Tensor], Tensor], *, draws: int, seed: int
) -> PowerLawFit:
    """Fits (draws, ...) of spectra that ``resample`` makes of uniform numbers, in blocks that bound the memory."""
    generator = torch.Generator("cpu").manual_seed(seed)
    step = max(1, _REFIT_ELEMENTS // max(1, values.numel()))
    fits = []
    for start in range(0, draws, step):
        shape = (min(step, draws - start), values.shape[-1])
        uniform = torch.rand(shape, generator=generator, dtype=torch.float64, device="cpu").to(values.device)
        fits.append(fit(resample(uniform)))
    return PowerLawFit(*(torch.cat(parts) for parts in zip(*fits, strict=True)))
