r"""Power-law fits :math:`p(\lambda) \propto \lambda^{-\alpha}, \lambda \geq x_{min}` to the tail of a spectrum.

Every fit takes many spectra of equal length at once and returns a :class:`PowerLawFit`. Given ``xmin`` the exponent
is always the maximum-likelihood (Hill) one; the fits differ in how they choose ``xmin``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

_SCAN_ELEMENTS = 2**22  # float64 entries of one block of the KS scan: 32 MiB
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


def fit_hill(eigenvalues: Tensor, xmin_position: float = 2.0, *, form: HillForm = "code") -> PowerLawFit:
    r"""Hill estimate PL_Alpha_Hill of the tail above a fixed rank.

    With ascending eigenvalues and :math:`i = \lfloor N / \text{xmin\_position} \rfloor` the two forms in use are

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

    Every eigenvalue but the largest is tried as ``xmin``; among the fits with a finite exponent above 1 the one of
    least :math:`D = \max_j |1 - (\lambda_j / x_{min})^{1-\alpha} - (j-i-1)/n|, j = i+1..N` is kept, the first of
    equals.

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


def fit_peak(eigenvalues: Tensor, *, lower_bound: PeakLowerBound = "published") -> PowerLawFit:
    r"""Like :func:`fit_ks`, with ``xmin`` near the peak of the logarithmic histogram (the authors' ``xmin_peak``).

    With ``e`` the left edge of the fullest of 100 bins of :math:`\log_{10} \lambda`, the candidates satisfy
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
    empirical = torch.arange(size, dtype=tail.dtype, device=tail.device) / size
    distance = (1 - (logs * (1 - alpha).unsqueeze(-1)).exp() - empirical).abs().amax(-1)
    return PowerLawFit(alpha, xmin, distance, torch.full_like(alpha, size, dtype=torch.int64))


def _scan(ordered: Tensor, candidates: Tensor) -> PowerLawFit:
    """Best of the candidate positions (..., N - 1) by KS distance."""
    logs = ordered.log()
    count = ordered.shape[-1]
    sizes = count - torch.arange(count - 1, dtype=logs.dtype, device=logs.device)
    tail_sums = logs.flip(-1).cumsum(-1).flip(-1)[..., :-1]
    alphas = 1 + sizes / (tail_sums - sizes * logs[..., :-1])
    valid = candidates & (alphas > 1) & alphas.isfinite()
    distances = _scan_distances(logs, alphas, sizes).masked_fill(~valid, torch.inf)
    best = distances.argmin(-1, keepdim=True)
    found = valid.any(-1)

    def pick(values: Tensor) -> Tensor:
        return values.gather(-1, best).squeeze(-1).masked_fill(~found, torch.nan)

    tail_size = torch.where(found, count - best.squeeze(-1), 0)
    return PowerLawFit(pick(alphas), pick(ordered[..., :-1]), pick(distances), tail_size)


def _scan_distances(logs: Tensor, alphas: Tensor, sizes: Tensor) -> Tensor:
    """KS distance of every candidate (..., N - 1), a block of candidates at a time to bound memory."""
    count = logs.shape[-1]
    position = torch.arange(count, device=logs.device)
    rows = max(1, _SCAN_ELEMENTS // max(1, logs.numel()))
    blocks = []
    for start in range(0, count - 1, rows):
        chosen = position[start : min(start + rows, count - 1)].unsqueeze(-1)
        seen = position[start:]
        relative = logs[..., None, start:] - logs[..., start : start + chosen.shape[0], None]
        fitted = 1 - (relative * (1 - alphas[..., start : start + chosen.shape[0], None])).exp()
        empirical = (seen - chosen) / sizes[start : start + chosen.shape[0], None]
        blocks.append((fitted - empirical).abs().masked_fill(seen < chosen, 0.0).amax(-1))
    return torch.cat(blocks, dim=-1)


def _histogram_peak(log_eigenvalues: Tensor) -> Tensor:
    """Left edge of the fullest of 100 equal bins (...), of the finite values."""
    finite = log_eigenvalues.isfinite()
    low = log_eigenvalues.masked_fill(~finite, torch.inf).amin(-1, keepdim=True)
    high = log_eigenvalues.masked_fill(~finite, -torch.inf).amax(-1, keepdim=True)
    width = (high - low) / _PEAK_BINS
    index = ((log_eigenvalues - low) / width).nan_to_num(nan=0.0, neginf=0.0).long().clamp(0, _PEAK_BINS - 1)
    counts = torch.zeros((*log_eigenvalues.shape[:-1], _PEAK_BINS), dtype=torch.int64, device=log_eigenvalues.device)
    counts.scatter_add_(-1, index, finite.long())
    return (low + counts.argmax(-1, keepdim=True) * width).squeeze(-1)
