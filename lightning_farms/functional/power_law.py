r"""Power-law fits :math:`p(\lambda) \propto \lambda^{-\alpha}, \lambda \geq x_{min}` to the tail of a spectrum.

Every fit takes many spectra of equal length at once and returns a :class:`PowerLawFit`. Given ``xmin``, the exponent
is always the maximum-likelihood (Hill) estimate; the fits differ in how they choose ``xmin``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

_SCAN_ELEMENTS = 2**15  # elements of one block of the KS scan: 256 KiB of float64; up to here torch uses one thread
_SCAN_POINTS = 16  # points of each tail in the first pass of the KS scan
_SCAN_GROWTH = 4  # factor by which the points increase in each further pass
_SCAN_ROUNDING = 1e-12  # by which two computations of one KS distance may differ
_PEAK_BINS = 100

HillForm = Literal["code", "paper"]
PeakLowerBound = Literal["published", "corrected"]


class PowerLawFit(NamedTuple):
    r"""Power-law tail of one or many spectra; all tensors have the spectra's leading shape.

    Attributes:
        alpha: exponent of :math:`p(\lambda) \propto \lambda^{-\alpha}`, above 1; NaN where no fit is possible and
            infinite where the whole tail equals ``xmin``.
        xmin: where the tail starts, in units of the squared weight.
        ks_distance: Kolmogorov-Smirnov distance D between tail and fit, in [0, 1]; NaN where alpha is not finite.
        tail_size: eigenvalues in the tail.
    """

    alpha: Tensor
    xmin: Tensor
    ks_distance: Tensor
    tail_size: Tensor

    @property
    def standard_error(self) -> Tensor:
        r"""Standard error :math:`(\alpha - 1) / \sqrt{n}` of alpha, n the tail's size; NaN where alpha is not finite.

        It holds for a tail of independent samples of the power law. The eigenvalues of one matrix repel each other
        and windows overlap, so for a spectrum it measures the fit's sampling error, not how well the matrix is known.

        Reference:
            Clauset, Shalizi, Newman, SIAM Review 51 (2009), Equation 3.2.
        """
        error = (self.alpha - 1) / self.tail_size.to(self.alpha).sqrt()
        return error.masked_fill(~self.alpha.isfinite(), torch.nan)


def fit_hill(eigenvalues: Tensor, xmin_position: float = 2.0, *, form: HillForm = "code") -> PowerLawFit:
    r"""Hill estimate PL_Alpha_Hill of the tail above a fixed rank.

    With eigenvalues in ascending order and :math:`i = \lfloor N / \text{xmin\_position} \rfloor`, two forms are in use:

    - ``"code"`` (the authors' program, WeightWatcher, powerlaw with fixed xmin): :math:`x_{min} = \lambda_{i+1}`,
      :math:`n = N - i`, :math:`\alpha = 1 + n / \sum_{j=i+1}^{N} \ln(\lambda_j / x_{min})`;
    - ``"paper"`` (Equation 2): :math:`k = N - i`, but at most N - 1, :math:`x_{min} = \lambda_{N-k}`,
      :math:`\alpha = 1 + k / \sum_{j=1}^{k} \ln(\lambda_{N-j+1} / x_{min})`.

    Args:
        eigenvalues: (..., N), any order, not negative, in units of the squared weight; N at least 2.
        xmin_position: N divided by the number of eigenvalues below the tail, above 1; 2 is the median.
        form: which of the two forms.

    Returns:
        The fit; float64.

    Raises:
        ValueError: fewer than two eigenvalues, or an argument out of range.

    Example:
        >>> fit = fit_hill(torch.tensor([1.0, 2.0, 4.0, 8.0]))
        >>> round(fit.alpha.item(), 4), fit.xmin.item(), fit.tail_size.item()
        (3.8854, 4.0, 2)

    Reference:
        Hu et al., ICML 2025, Equation 2; Hill, Annals of Statistics 3 (1975).
    """
    if not xmin_position > 1:
        raise ValueError(f"Expected argument `xmin_position` to be above 1, but got {xmin_position}.")
    if form not in get_args(HillForm):
        raise ValueError(f"Expected argument `form` to be one of {get_args(HillForm)}, but got {form!r}.")
    ordered = _ascending(eigenvalues)
    count = ordered.shape[-1]
    below = min(int(count / xmin_position), count - 1)
    if form == "code":
        return _fit_tail(ordered[..., below:], ordered[..., below])
    below = max(below, 1)
    return _fit_tail(ordered[..., below:], ordered[..., below - 1])


def fit_ks(eigenvalues: Tensor) -> PowerLawFit:
    r"""Power law whose ``xmin`` minimises the Kolmogorov-Smirnov distance (the authors' ``goodness-of-fit``).

    Every distinct eigenvalue but the largest is tried as ``xmin``, with the n eigenvalues at or above it as the tail.
    Among the fits with a finite exponent above 1, the one with the least
    :math:`D = \max_x |1 - (x / x_{min})^{1-\alpha} - F(x)|` over the distinct values x of the tail is kept (of equal
    ones the first); :math:`F(x)` is the share of the tail below x.

    Args:
        eigenvalues: (..., N), any order, not negative, in units of the squared weight; N at least 2.

    Returns:
        The fit; float64.

    Raises:
        ValueError: fewer than two eigenvalues.

    Example:
        >>> fit_ks(torch.arange(1.0, 101.0) ** 2).tail_size.item()
        22

    Reference:
        Clauset, Shalizi, Newman, SIAM Review 51 (2009), Section 3.3.
    """
    ordered = _ascending(eigenvalues)
    return _scan(ordered, torch.ones_like(ordered[..., :-1], dtype=torch.bool))


class KSScan(NamedTuple):
    r"""Fits for all candidates for ``xmin`` of one spectrum, in ascending order; all tensors are (C,).

    Attributes:
        xmin: the candidates, in units of the squared weight.
        alpha: exponent of the fit with each candidate.
        ks_distance: Kolmogorov-Smirnov distance D between tail and fit, in [0, 1].
        tail_size: number of eigenvalues at or above each candidate.
    """

    xmin: Tensor
    alpha: Tensor
    ks_distance: Tensor
    tail_size: Tensor


def scan_ks(eigenvalues: Tensor, *, candidates: int | None = None) -> KSScan:
    r"""Compute the KS distances that :func:`fit_ks` minimises, one for each candidate for ``xmin``.

    Args:
        eigenvalues: (N,), any order, not negative, in units of the squared weight; N at least 2.
        candidates: largest number of candidates, evenly spaced in rank, to which the best one is added; ``None`` for
            all, which takes time of the order of :math:`N^2`.

    Returns:
        The candidates with a finite exponent above 1; float64. Empty tensors if no fit is possible.

    Raises:
        ValueError: not one spectrum of two or more eigenvalues, or ``candidates`` below 1.

    Example:
        >>> scan = scan_ks(torch.arange(1.0, 101.0) ** 2)
        >>> len(scan.xmin), scan.tail_size[scan.ks_distance.argmin()].item()
        (99, 22)

    Reference:
        Clauset, Shalizi, Newman, SIAM Review 51 (2009), Section 3.3.
    """
    if eigenvalues.ndim != 1:
        raise ValueError(f"Expected argument `eigenvalues` to be (N,), but got shape {tuple(eigenvalues.shape)}.")
    if candidates is not None and candidates < 1:
        raise ValueError(f"Expected argument `candidates` to be None or at least 1, but got {candidates}.")
    ordered = _ascending(eigenvalues)
    tails = _tails(ordered, torch.ones_like(ordered[:-1], dtype=torch.bool))
    starts = tails.valid.nonzero().squeeze(-1)
    if candidates is not None and len(starts) > candidates:
        evenly = torch.linspace(0, len(starts) - 1, candidates, dtype=torch.float64).round().long().to(starts.device)
        best = _scan_distances(*(each.unsqueeze(0) for each in tails)).argmin(-1)
        starts = torch.cat([starts[evenly], best]).unique()
    flat = tails.depths.unsqueeze(0), tails.firsts.unsqueeze(0), tails.alphas.unsqueeze(0)
    distances = _distances(*flat, torch.zeros_like(starts), starts, len(ordered))
    return KSScan(ordered[starts], tails.alphas[starts], distances, len(ordered) - starts)


def fit_peak(eigenvalues: Tensor, *, lower_bound: PeakLowerBound = "published") -> PowerLawFit:
    r"""Like :func:`fit_ks`, with ``xmin`` near the peak of the logarithmic histogram (the authors' ``xmin_peak``).

    If ``e`` is the left edge of the fullest of 100 bins of :math:`\log_{10} \lambda`, the candidates satisfy
    :math:`\log_{10}(0.95 \cdot 10^e) \le x_{min} \le 1.5 \cdot 10^e` (``"published"``: the lower bound compares a
    logarithm with an eigenvalue) or :math:`0.95 \cdot 10^e \le x_{min} \le 1.5 \cdot 10^e` (``"corrected"``). Zero
    eigenvalues are left out of the histogram.

    Args:
        eigenvalues: (..., N), any order, not negative, in units of the squared weight; N at least 2.
        lower_bound: the published lower bound or the corrected one.

    Returns:
        The fit; float64; NaN where no candidate lies within the bounds.

    Raises:
        ValueError: fewer than two eigenvalues, or an unknown bound.

    Example:
        >>> round(fit_peak(torch.arange(1.0, 101.0), lower_bound="corrected").xmin.item())
        91
    """
    if lower_bound not in get_args(PeakLowerBound):
        raise ValueError(
            f"Expected argument `lower_bound` to be one of {get_args(PeakLowerBound)}, but got {lower_bound!r}."
        )
    ordered = _ascending(eigenvalues)
    edge = _histogram_peak(ordered.log10()).unsqueeze(-1)
    peak = 10**edge
    lower = (0.95 * peak).log10() if lower_bound == "published" else 0.95 * peak
    candidates = ordered[..., :-1]
    return _scan(ordered, (candidates >= lower) & (candidates <= 1.5 * peak))


def _ascending(eigenvalues: Tensor) -> Tensor:
    if eigenvalues.ndim < 1 or eigenvalues.shape[-1] < 2:
        raise ValueError(
            f"Expected argument `eigenvalues` to be (..., N) with N >= 2, but got shape {tuple(eigenvalues.shape)}."
        )
    return eigenvalues.to(torch.float64).sort(dim=-1).values


def _fit_tail(tail: Tensor, xmin: Tensor) -> PowerLawFit:
    size = tail.shape[-1]
    logs = (tail / xmin.unsqueeze(-1)).log()
    alpha = 1 + size / logs.sum(-1)
    alpha = alpha.masked_fill(~(alpha > 1), torch.nan)
    empirical = torch.arange(size, dtype=tail.dtype, device=tail.device) / size
    distance = (1 - (logs * (1 - alpha).unsqueeze(-1)).exp() - empirical).abs().amax(-1)
    return PowerLawFit(alpha, xmin, distance, torch.full_like(alpha, size, dtype=torch.int64))


class _Tails(NamedTuple):
    """Quantities of the tails that begin at each position (..., N - 1), which `_scan_distances` explains."""

    depths: Tensor
    firsts: Tensor
    alphas: Tensor
    valid: Tensor


def _tails(ordered: Tensor, candidates: Tensor) -> _Tails:
    """Prepare the tails; an eigenvalue of zero, or one that repeats the one before it, is never a valid candidate."""
    count = ordered.shape[-1]
    lower, upper = ordered[..., :-1], ordered[..., 1:]
    positive = lower > 0
    gaps = ((upper - lower) / lower).log1p().masked_fill(~positive, 0.0)
    sizes = count - torch.arange(count - 1, dtype=gaps.dtype, device=gaps.device)
    alphas = 1 + sizes / _sums_from(gaps * (sizes - 1))
    valid = candidates & positive & (alphas > 1) & alphas.isfinite()
    firsts = _first_of_equals(ordered)
    valid = valid & (firsts[..., :-1] == torch.arange(count - 1, device=gaps.device))
    return _Tails(torch.nn.functional.pad(_sums_from(gaps), (0, 1)), firsts, alphas, valid)


def _scan(ordered: Tensor, candidates: Tensor) -> PowerLawFit:
    """Fit with the candidate position (..., N - 1) of least KS distance."""
    count = ordered.shape[-1]
    tails = _tails(ordered, candidates)
    distances = _scan_distances(*(each.reshape(-1, each.shape[-1]) for each in tails)).reshape(tails.alphas.shape)
    best = distances.argmin(-1, keepdim=True)
    found = tails.valid.any(-1)

    def pick(values: Tensor) -> Tensor:
        return values.gather(-1, best).squeeze(-1).masked_fill(~found, torch.nan)

    tail_size = torch.where(found, count - best.squeeze(-1), 0)
    return PowerLawFit(pick(tails.alphas), pick(ordered[..., :-1]), pick(distances), tail_size)


def _sums_from(values: Tensor) -> Tensor:
    """Sum of all values from each position to the last one."""
    return values.flip(-1).cumsum(-1).flip(-1)


def _first_of_equals(ordered: Tensor) -> Tensor:
    """Position of the first equal value for every position of (..., N), ascending."""
    positions = torch.arange(ordered.shape[-1], device=ordered.device).expand(ordered.shape)
    repeated = torch.nn.functional.pad(ordered[..., 1:] == ordered[..., :-1], (1, 0))
    return positions.masked_fill(repeated, 0).cummax(-1).values


def _scan_distances(depths: Tensor, firsts: Tensor, alphas: Tensor, valid: Tensor) -> Tensor:
    """KS distance of every valid candidate (B, N - 1) that may be the best of its spectrum, infinite for the others.

    The distance at a few points of a tail is a lower bound of the distance over the whole tail. Each pass takes more
    points, until all are taken, but only of candidates whose bound is not above the distance of the most promising one.

    Args:
        depths: (B, N), ln(largest eigenvalue / eigenvalue).
        firsts: (B, N), position of the first equal eigenvalue.
        alphas: (B, N - 1), exponent with each position's eigenvalue as xmin.
        valid: (B, N - 1), the candidates; their exponents are finite.
    """
    spectra, count = torch.arange(len(depths), device=depths.device), depths.shape[-1]
    possible, points = valid, _SCAN_POINTS
    while True:
        spectrum, start = possible.nonzero(as_tuple=True)
        seen = _distances(depths, firsts, alphas, spectrum, start, points)
        bounds = torch.full_like(alphas, torch.inf).index_put((spectrum, start), seen)
        if points >= count:
            return bounds
        promising = _distances(depths, firsts, alphas, spectra, bounds.argmin(-1), count)
        possible = valid & (bounds <= promising.unsqueeze(-1) + _SCAN_ROUNDING)
        points *= _SCAN_GROWTH


def _distances(depths: Tensor, firsts: Tensor, alphas: Tensor, spectra: Tensor, starts: Tensor, points: int) -> Tensor:
    """KS distances (C,) of the tails given by ``spectra`` and ``starts`` (C,), at ``points`` evenly spaced places."""
    count = depths.shape[-1]
    steps = torch.arange(points, device=depths.device)
    blocks = []
    rows = max(1, _SCAN_ELEMENTS // points)
    for row, start in zip(spectra.split(rows), starts.split(rows), strict=True):
        size = (count - start).unsqueeze(-1)
        offset = (steps * ((size - 1) // points + 1)).minimum(size - 1)
        places = offset + (row * count + start).unsqueeze(-1)
        relative = depths[row, start].unsqueeze(-1) - depths.take(places)
        fitted = 1 - (relative * (1 - alphas[row, start]).unsqueeze(-1)).exp()
        below = firsts.take(places) - start.unsqueeze(-1)  # number of the tail's values below each point
        blocks.append((fitted - below.to(fitted) / size).abs().amax(-1))
    return torch.cat(blocks)


def _histogram_peak(log_eigenvalues: Tensor) -> Tensor:
    """Left edge (...) of the fullest of 100 equal bins of the finite values."""
    finite = log_eigenvalues.isfinite()
    low = log_eigenvalues.masked_fill(~finite, torch.inf).amin(-1, keepdim=True)
    high = log_eigenvalues.masked_fill(~finite, -torch.inf).amax(-1, keepdim=True)
    width = (high - low) / _PEAK_BINS
    index = ((log_eigenvalues - low) / width).nan_to_num(nan=0.0, neginf=0.0).long().clamp(0, _PEAK_BINS - 1)
    counts = torch.zeros((*log_eigenvalues.shape[:-1], _PEAK_BINS), dtype=torch.int64, device=log_eigenvalues.device)
    counts.scatter_add_(-1, index, finite.long())
    return (low + counts.argmax(-1, keepdim=True) * width).squeeze(-1)
