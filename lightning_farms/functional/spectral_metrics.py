"""Numbers and curves that describe a whole spectrum."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

NUMERICALLY_ZERO = 1e-12  # relative to the largest eigenvalue


class SpectralDensity(NamedTuple):
    """Histogram density of one or many spectra, with bins of equal width in the logarithm.

    Attributes:
        edges: (..., B + 1), ascending, in units of the squared weight.
        density: (..., B), share of the eigenvalues in the bin divided by its width.
    """

    edges: Tensor
    density: Tensor


def stable_rank(eigenvalues: Tensor) -> Tensor:
    r"""Stable rank :math:`\sum_i \lambda_i / \max_i \lambda_i = \|W\|_F^2 / \|W\|_2^2` of a spectrum.

    Args:
        eigenvalues: (..., N), not negative, in units of the squared weight.

    Returns:
        (...), between 1 and N; NaN where all eigenvalues are zero.

    Raises:
        ValueError: no eigenvalues.

    Example:
        >>> stable_rank(torch.tensor([1.0, 1.0, 2.0]))
        tensor(2.)
    """
    _check(eigenvalues)
    return eigenvalues.sum(-1) / eigenvalues.amax(-1)


def effective_rank(eigenvalues: Tensor) -> Tensor:
    r"""Effective rank :math:`\exp(-\sum_i p_i \ln p_i)` with :math:`p_i = \lambda_i / \sum_j \lambda_j`.

    The shares are those of the eigenvalues, i.e. of the squared Frobenius norm, as in WeightWatcher's matrix entropy
    (which is the logarithm of the effective rank divided by the logarithm of the rank). Roy and Vetterli take shares of
    the singular values, which corresponds to ``effective_rank(eigenvalues.sqrt())``.

    Args:
        eigenvalues: (..., N), not negative, in units of the squared weight.

    Returns:
        (...), float64, between 1 and N; NaN where all eigenvalues are zero.

    Raises:
        ValueError: no eigenvalues.

    Example:
        >>> effective_rank(torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 2.0]]))
        tensor([2.0000, 2.8284], dtype=torch.float64)

    Reference:
        Roy and Vetterli, European Signal Processing Conference (2007), Definition 1.
    """
    _check(eigenvalues)
    values = eigenvalues.to(torch.float64)
    entropy: Tensor = torch.special.entr(values / values.sum(-1, keepdim=True)).sum(-1)
    return entropy.exp()


def log_norm(eigenvalues: Tensor) -> Tensor:
    r"""Logarithm :math:`\log_{10} \sum_i \lambda_i = \log_{10} \|W\|_F^2` of the squared Frobenius norm.

    Args:
        eigenvalues: (..., N), not negative, in units of the squared weight.

    Returns:
        (...), float64; minus infinity where all eigenvalues are zero.

    Raises:
        ValueError: no eigenvalues.

    Example:
        >>> log_norm(torch.tensor([10.0, 90.0]))
        tensor(2., dtype=torch.float64)
    """
    _check(eigenvalues)
    return eigenvalues.to(torch.float64).sum(-1).log10()


def spectral_density(eigenvalues: Tensor, *, bins: int | None = None) -> SpectralDensity:
    """Estimate spectral densities by histograms with bins of equal width in the logarithm.

    The bins run from the smallest eigenvalue above 1e-12 of the largest one to the largest one; those below count as
    zero, in N but in no bin. If all are equal, the bins extend a tenth below and above.

    Args:
        eigenvalues: (..., N), any order, finite, not negative.
        bins: B, at least 1; None: twice the square root of N, but at least 8 and at most 64.

    Returns:
        Edges and densities, float64; the integral is the share of the eigenvalues that are not numerically zero. NaN
        where all eigenvalues are zero.

    Raises:
        ValueError: no eigenvalues, or fewer than one bin.

    Example:
        >>> spectral_density(torch.tensor([0.0, 1.0, 2.0, 100.0]), bins=2)
        SpectralDensity(edges=tensor([  1.,  10., 100.], dtype=torch.float64), \
density=tensor([0.0556, 0.0028], dtype=torch.float64))
    """
    _check(eigenvalues)
    values = eigenvalues.to(torch.float64)
    if bins is None:
        bins = int(min(max(2 * values.shape[-1] ** 0.5, 8), 64))
    if bins < 1:
        raise ValueError(f"Expected argument `bins` to be at least 1, but got {bins}.")
    largest = values.amax(-1, keepdim=True)
    largest = largest.masked_fill(largest == 0, torch.nan)
    counted = values > NUMERICALLY_ZERO * largest
    smallest = torch.where(counted, values, largest).amin(-1, keepdim=True)
    single = smallest == largest
    first, last = torch.where(single, largest / 1.1, smallest), torch.where(single, largest * 1.1, largest)
    width = (last / first).log10() / bins
    inner = first * 10 ** (width * torch.arange(1, bins, dtype=values.dtype, device=values.device))
    edges = torch.cat([first, inner, last], dim=-1)
    position = ((values / first).log10() / width).nan_to_num(nan=0.0, neginf=0.0).long().clamp(0, bins - 1)
    counts = torch.zeros_like(edges[..., 1:]).scatter_add(-1, position, counted.to(values.dtype))
    return SpectralDensity(edges, counts / (values.shape[-1] * edges.diff(dim=-1)))


def _check(eigenvalues: Tensor) -> None:
    if eigenvalues.ndim < 1 or eigenvalues.shape[-1] == 0:
        raise ValueError(
            f"Expected argument `eigenvalues` to be (..., N) with N >= 1, but got shape {tuple(eigenvalues.shape)}."
        )
