r"""Spectra of random matrices: the Marchenko-Pastur law, spikes beyond it, and shuffled copies of a matrix.

Throughout, the matrices are m x n with independent entries of mean zero and variance :math:`s^2` (:math:`E|w|^2` if
complex), and the eigenvalues are the k = min(m, n) eigenvalues of :math:`W^\dagger W` that need not be zero.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_farms.functional.spectral_metrics import NUMERICALLY_ZERO

_TRACY_WIDOM_99 = {1: 2.0234, 2: 0.4776}  # 0.99 quantiles by Dyson index: 1 for real entries, 2 for complex ones
_SWEEPS = 8
_BISECTIONS = 60


class MarchenkoPasturEdges(NamedTuple):
    """Edges of the Marchenko-Pastur law.

    Attributes:
        lower: lower edge, zero for a square matrix.
        upper: upper edge.
    """

    lower: Tensor
    upper: Tensor


class MarchenkoPasturFit(NamedTuple):
    """Marchenko-Pastur law of the bulk of a spectrum; tensors of its leading shape, all NaN where no law fits.

    Attributes:
        variance: variance of the entries that make up the bulk.
        lower_edge: lower edge of the bulk, in units of the squared weight.
        upper_edge: upper edge of the bulk, in units of the squared weight.
        spike_threshold: value that the largest eigenvalue of a matrix without structure exceeds once in 100 times.
        spikes: number of eigenvalues above the threshold, mean over matrices.
        soft_rank: upper edge divided by the largest eigenvalue (mean over matrices); about 1 for a random matrix.
        ks_distance: Kolmogorov-Smirnov distance between all eigenvalues, pooled over matrices, and the law, in [0, 1].
    """

    variance: Tensor
    lower_edge: Tensor
    upper_edge: Tensor
    spike_threshold: Tensor
    spikes: Tensor
    soft_rank: Tensor
    ks_distance: Tensor


def marchenko_pastur_edges(rows: int, columns: int, variance: Tensor | float) -> MarchenkoPasturEdges:
    r"""Edges :math:`\lambda_\pm = s^2 (\sqrt m \pm \sqrt n)^2` of the Marchenko-Pastur law.

    Args:
        rows: m, at least 1.
        columns: n, at least 1.
        variance: (...), variance of the entries, positive.

    Returns:
        The edges, (...), float64, in units of the variance.

    Raises:
        ValueError: fewer than one row or column, or a number `variance` that is not positive.

    Example:
        >>> marchenko_pastur_edges(400, 100, 0.01)
        MarchenkoPasturEdges(lower=tensor(1., dtype=torch.float64), upper=tensor(9., dtype=torch.float64))

    Reference:
        Marchenko and Pastur, Mathematics of the USSR-Sbornik 1 (1967).
    """
    scale = _checked_variance(rows, columns, variance)
    short, long = sorted((rows, columns))
    return MarchenkoPasturEdges(
        scale * (math.sqrt(long) - math.sqrt(short)) ** 2, scale * (math.sqrt(long) + math.sqrt(short)) ** 2
    )


def marchenko_pastur_density(x: Tensor, rows: int, columns: int, variance: Tensor | float) -> Tensor:
    r"""Density of the Marchenko-Pastur law.

    .. math:: \rho(x) = \frac{\sqrt{(\lambda_+ - x)(x - \lambda_-)}}{2 \pi s^2 k x}, \quad
        \lambda_- \le x \le \lambda_+

    It integrates to 1, also for a square matrix, whose density is infinite at zero.

    Args:
        x: any shape, in units of the squared weight.
        rows: m, at least 1.
        columns: n, at least 1.
        variance: variance of the entries, positive; broadcast against `x`.

    Returns:
        The density, float64, zero outside the edges.

    Raises:
        ValueError: fewer than one row or column, or a number `variance` that is not positive.

    Example:
        >>> marchenko_pastur_density(torch.tensor([0.0, 2.0, 5.0]), 1, 1, 1.0)
        tensor([   inf, 0.1592, 0.0000], dtype=torch.float64)
    """
    return marchenko_pastur_density_between(x, *marchenko_pastur_edges(rows, columns, variance))


def marchenko_pastur_density_between(x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    r"""Density of the Marchenko-Pastur law with the given edges, which determine it.

    .. math:: \rho(x) = \frac{2 \sqrt{(\lambda_+ - x)(x - \lambda_-)}}
        {\pi (\sqrt{\lambda_+} - \sqrt{\lambda_-})^2 x}, \quad \lambda_- \le x \le \lambda_+

    Args:
        x: any shape, in units of the squared weight.
        lower: lower edge, not negative; broadcast against `x`.
        upper: upper edge, above the lower one; broadcast against `x`.

    Returns:
        The density, float64, zero outside the edges.

    Example:
        >>> marchenko_pastur_density_between(torch.tensor([1.0, 4.0]), torch.tensor(1.0), torch.tensor(9.0))
        tensor([0.0000, 0.1541], dtype=torch.float64)
    """
    wide, low, high = (part.to(torch.float64) for part in (x, lower, upper))
    above_lower = torch.where(low == 0, 1.0, (wide - low) / wide)
    height = ((high - wide) / wide * above_lower).sqrt() * 2 / (math.pi * (high.sqrt() - low.sqrt()).square())
    return height.masked_fill((wide < low) | (wide > high), 0.0)


def marchenko_pastur_cdf(x: Tensor, rows: int, columns: int, variance: Tensor | float) -> Tensor:
    r"""Distribution function of the Marchenko-Pastur law, in closed form.

    .. math:: F(x) = \frac{\sqrt{(\lambda_+ - x)(x - \lambda_-)} / s^2 + (m + n) \theta - |m - n| \varphi}{2 \pi k},
        \quad \tan^2 \frac{\theta}{2} = \frac{x - \lambda_-}{\lambda_+ - x},
        \quad \tan^2 \frac{\varphi}{2} = \frac{\lambda_+ (x - \lambda_-)}{\lambda_- (\lambda_+ - x)}

    Args:
        x: any shape, in units of the squared weight.
        rows: m, at least 1.
        columns: n, at least 1.
        variance: variance of the entries, positive; broadcast against `x`.

    Returns:
        The share of eigenvalues up to `x`, float64, in [0, 1].

    Raises:
        ValueError: fewer than one row or column, or a number `variance` that is not positive.

    Example:
        >>> marchenko_pastur_cdf(torch.tensor([0.0, 1.0, 2.0, 5.0]), 1, 1, 1.0)
        tensor([0.0000, 0.6090, 0.8183, 1.0000], dtype=torch.float64)
    """
    scale = _checked_variance(rows, columns, variance)
    lower, upper = marchenko_pastur_edges(rows, columns, scale)
    inside = x.to(torch.float64).clamp(lower, upper)
    above, below = inside - lower, upper - inside
    theta = 2 * torch.atan2(above.sqrt(), below.sqrt())
    phi = 2 * torch.atan2((upper * above).sqrt(), (lower * below).sqrt())
    angles = (rows + columns) * theta - abs(rows - columns) * phi
    share = ((above * below).sqrt() / scale + angles) / (2 * math.pi * min(rows, columns))
    return share.clamp(0.0, 1.0)


def spike_threshold(rows: int, columns: int, variance: Tensor | float, *, complex_entries: bool = False) -> Tensor:
    r"""Threshold that the largest eigenvalue of a random matrix exceeds with probability 0.01.

    .. math:: s^2 \left[(a + b)^2 + q \, (a + b) (1/a + 1/b)^{1/3}\right], \quad
        a = \sqrt{m - c}, \; b = \sqrt{n - c}

    For real entries, c = 1/2, which makes the Tracy-Widom limit accurate at small sizes and, unlike Johnstone's
    :math:`\sqrt{m - 1}, \sqrt n`, treats a matrix and its transpose alike; q = 2.0234 is the 0.99 quantile of the
    Tracy-Widom law of index 1. For complex entries, c = 0 and q = 0.4776, the quantile of the law of index 2.

    Args:
        rows: m, at least 1.
        columns: n, at least 1.
        variance: (...), variance of the entries, positive.
        complex_entries: whether the entries are complex.

    Returns:
        The threshold, (...), float64, in units of the variance.

    Raises:
        ValueError: fewer than one row or column, or a number `variance` that is not positive.

    Example:
        >>> spike_threshold(400, 100, 0.01)
        tensor(9.2998, dtype=torch.float64)

    Reference:
        Johnstone, Annals of Statistics 29 (2001), Theorem 1.1; Ma, Bernoulli 18 (2012), Theorem 1.
    """
    scale = _checked_variance(rows, columns, variance)
    shift = 0.0 if complex_entries else 0.5
    a, b = math.sqrt(rows - shift), math.sqrt(columns - shift)
    margin: float = _TRACY_WIDOM_99[2 if complex_entries else 1] * (a + b) * (1 / a + 1 / b) ** (1 / 3)
    return scale * ((a + b) ** 2 + margin)


def fit_marchenko_pastur(
    eigenvalues: Tensor, rows: int, columns: int, *, complex_entries: bool = False
) -> MarchenkoPasturFit:
    r"""Fit one Marchenko-Pastur law to the bulk of the spectra of equally sized matrices.

    The variance starts from the pooled median divided by the law's median. Then, eight times, eigenvalues above the
    spike threshold are left out, and

    .. math:: s^2 = \frac{\sum_p \sum_{\lambda \text{ kept}} \lambda}{\sum_p (m - r_p)(n - r_p)}

    with :math:`r_p` the number left out of matrix p: without r spikes, the rest has the mean square of an
    (m - r) x (n - r) random matrix. If half of the eigenvalues are numerically zero (at most 1e-12 of the largest one)
    or one is not finite, there is no law and all results are NaN. The fit does not wait for the device.

    Args:
        eigenvalues: (..., P, k), any order, not negative, of P matrices, k = min(m, n).
        rows: m.
        columns: n.
        complex_entries: whether the matrices are complex.

    Returns:
        The fit, (...), float64.

    Raises:
        ValueError: the eigenvalues are not (..., P, min(m, n)) with P at least 1.

    Example:
        >>> matrix = torch.randn(200, 100, generator=torch.Generator().manual_seed(0))
        >>> fit = fit_marchenko_pastur(torch.linalg.svdvals(matrix).square().unsqueeze(0), 200, 100)
        >>> round(fit.variance.item(), 2), fit.spikes.item()
        (1.01, 0.0)

    Reference:
        Martin and Mahoney, Journal of Machine Learning Research 22 (2021), Sections 3 and 4.
    """
    _check_eigenvalues(eigenvalues, rows, columns)
    values = eigenvalues.to(torch.float64)
    pooled = values.flatten(-2).sort(dim=-1).values
    unit_threshold = spike_threshold(rows, columns, 1.0, complex_entries=complex_entries)
    variance = _bulk_variance(values, pooled, rows, columns, unit_threshold)
    lower, upper = marchenko_pastur_edges(rows, columns, variance)
    threshold = unit_threshold * variance
    spikes = (values > threshold[..., None, None]).sum(-1, dtype=torch.float64).mean(-1)
    return MarchenkoPasturFit(
        variance=variance,
        lower_edge=lower,
        upper_edge=upper,
        spike_threshold=threshold,
        spikes=spikes.masked_fill(variance.isnan(), torch.nan),
        soft_rank=upper / values.amax(-1).mean(-1),
        ks_distance=_ks_distance(pooled, rows, columns, variance),
    )


def shuffle_entries(matrices: Tensor, seed: int) -> Tensor:
    """Permute the entries of all matrices together at random, which keeps the values but not their structure.

    The permutation depends on the seed and the number of entries alone, not on the device or on the state of any
    other generator. It takes 8 bytes per entry.

    Args:
        matrices: (..., m, n), of any type; the dimensions before the last two count as one set of matrices.
        seed: seed of the permutation.

    Returns:
        (..., m, n), a copy.

    Example:
        >>> shuffle_entries(torch.arange(6).reshape(1, 2, 3), seed=0)
        tensor([[[2, 5, 3],
                 [0, 1, 4]]])
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    order = torch.randperm(matrices.numel(), generator=generator, device="cpu")
    return matrices.flatten()[order.to(matrices.device)].view(matrices.shape)


def _checked_variance(rows: int, columns: int, variance: Tensor | float) -> Tensor:
    for name, size in (("rows", rows), ("columns", columns)):
        if size < 1:
            raise ValueError(f"Expected argument `{name}` to be at least 1, but got {size}.")
    if isinstance(variance, Tensor):
        return variance.to(torch.float64)
    if not variance > 0:
        raise ValueError(f"Expected argument `variance` to be positive, but got {variance}.")
    return torch.tensor(variance, dtype=torch.float64, device="cpu")


def _check_eigenvalues(eigenvalues: Tensor, rows: int, columns: int) -> None:
    shape = tuple(eigenvalues.shape)
    if len(shape) < 2 or shape[-2] < 1 or shape[-1] != min(rows, columns):
        raise ValueError(
            f"Expected argument `eigenvalues` to be (..., P, {min(rows, columns)}) for {rows} x {columns} matrices,"
            f" but got shape {shape}."
        )


def _bulk_variance(values: Tensor, pooled: Tensor, rows: int, columns: int, unit_threshold: Tensor) -> Tensor:
    count = pooled.shape[-1]
    median = (pooled[..., (count - 1) // 2] + pooled[..., count // 2]) / 2
    variance = median / _unit_median(rows, columns)
    for _ in range(_SWEEPS):
        kept = values <= (unit_threshold * variance)[..., None, None]
        dropped = (~kept).sum(-1)
        entries = ((rows - dropped) * (columns - dropped)).sum(-1)
        variance = torch.where(kept, values, 0.0).sum((-2, -1)) / entries
    return variance.masked_fill(~(median > NUMERICALLY_ZERO * pooled[..., -1]), torch.nan)


@lru_cache(maxsize=1024)
def _unit_median(rows: int, columns: int) -> float:
    """Median of the Marchenko-Pastur law of unit variance, by bisection on the CPU."""
    low, high = marchenko_pastur_edges(rows, columns, 1.0)
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        beyond = marchenko_pastur_cdf(middle, rows, columns, 1.0) > 0.5
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return float(high)


def _ks_distance(pooled: Tensor, rows: int, columns: int, variance: Tensor) -> Tensor:
    fitted = marchenko_pastur_cdf(pooled, rows, columns, variance.unsqueeze(-1))
    count = pooled.shape[-1]
    steps = torch.arange(count + 1, dtype=torch.float64, device=pooled.device) / count
    return torch.maximum((fitted - steps[:-1]).abs(), (fitted - steps[1:]).abs()).amax(-1)
