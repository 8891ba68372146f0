r"""Tests whether another law fits the tail of a spectrum better than a power law: likelihood ratios and p-values.

All laws begin at a given :math:`x_{min}` and are fitted by maximum likelihood. With :math:`y = \ln(x / x_{min})` the
laws of two parameters are exponential families, :math:`p(y) \propto e^{-a y - c h(y)}` with :math:`h = y^2` for the
lognormal and :math:`h = e^y - 1` for the truncated power law. Their fits depend only on the means of y and h over the
tail, and each has one optimum, which Newton's method finds for many spectra at once.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

_NODES = 96  # nodes of the Gauss-Legendre rule
_FAR = 45.0  # e-folds below its largest value at which an integrand is cut off
_STEPS = 60
_CONVERGED = 1e-14  # relative gain in the mean log-likelihood at which the iteration stops
_TOWARDS_BOUND = 0.75  # share of the distance to a parameter's bound that a step may go
_SHARES = (1.0, 0.5, 0.25, 0.125, 1 / 32, 1 / 128, 1 / 1024, 0.0)  # shares of a Newton step that are tried


class LikelihoodRatio(NamedTuple):
    r"""How much better or worse than a power law another law fits the tails of one or many spectra.

    Attributes:
        total: :math:`R = \sum_i \ln p_{power}(x_i) - \ln p_{other}(x_i)`; positive where the power law fits better.
        spread: :math:`\sqrt n \sigma`, the standard deviation of R; :math:`\sigma` is that of one term.
        nested: if the power law is a special case of the other law, how many parameters more the other law has (then R
            is never positive); otherwise 0.
    """

    total: Tensor
    spread: Tensor
    nested: Tensor

    @property
    def normalized(self) -> Tensor:
        """R divided by its standard deviation; 0 where both laws are the same."""
        same = self.total.abs() <= _same(self.spread)
        return (self.total / self.spread).masked_fill(same, 0.0)

    @property
    def p_value(self) -> Tensor:
        r"""Probability of an R at least as far from zero if neither law is the better one.

        This is Vuong's p-value, :math:`\mathrm{erfc}(|R| / \sqrt{2 n} \sigma)`; for a nested law it is the p-value of
        :math:`2 |R|` under the chi-squared law with as many degrees of freedom as the other law has additional
        parameters. It holds for many independent samples.
        """
        distance = self.total.abs()
        vuong = torch.erfc(self.normalized.abs() / 2**0.5)
        chi_squared = torch.special.gammaincc(self.nested.clamp(min=1) / 2, distance)
        return torch.where(self.nested > 0, chi_squared, vuong).masked_fill(distance <= _same(self.spread), 1.0)

    def summed(self, of: Tensor) -> LikelihoodRatio:
        """The ratio for several independent tails together, each with parameters of its own.

        Args:
            of: (..., B), bool, which tails of the last dimension are summed.
        """
        parts = (self.total, self.spread.square(), self.nested)
        total, variance, nested = (part.masked_fill(~of, 0).sum(-1) for part in parts)
        return LikelihoodRatio(total, variance.sqrt(), nested)


class DistributionComparison(NamedTuple):
    r"""Likelihood ratios of a power law against three other laws above the same xmin.

    Attributes:
        lognormal: against :math:`p(x) \propto x^{-1} e^{-(\ln x - \mu)^2 / 2 s^2}`.
        exponential: against :math:`p(x) \propto e^{-\lambda x}`.
        truncated_power_law: against :math:`p(x) \propto x^{-\alpha} e^{-\lambda x}`, with alpha and lambda not
            negative; the power law is a special case of it.
    """

    lognormal: LikelihoodRatio
    exponential: LikelihoodRatio
    truncated_power_law: LikelihoodRatio


def compare_distributions(eigenvalues: Tensor, xmin: Tensor) -> DistributionComparison:
    r"""Compare a power law with a lognormal, an exponential and a truncated power law above a given xmin.

    Each law is fitted to the eigenvalues at or above ``xmin`` by maximum likelihood. A positive ratio speaks for the
    power law, a negative one for the other law; with a p-value above 0.1, as the second reference proposes, it speaks
    for neither. With few eigenvalues (below some 50) the p-value is seldom smaller, whatever the law. Where the best
    lognormal or truncated power law is the power law itself (the limit of a wide lognormal), R is 0 and p is 1.

    The eigenvalues are treated as independent samples. Those of one matrix repel each other and windows overlap, so
    for a matrix p is not a probability: it tells for which layers another law is the better description.

    Args:
        eigenvalues: (..., N), any order, not negative, in units of the squared weight.
        xmin: (...), where the tail starts, in the same units.

    Returns:
        Three ratios of shape (...), float64; NaN where the tail has fewer than three eigenvalues or all are equal, or
        xmin is not positive.

    Raises:
        ValueError: the shape of ``xmin`` is not that of ``eigenvalues`` without the last dimension.

    Example:
        >>> share = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
        >>> comparison = compare_distributions(1 - (1 - share).log(), torch.tensor(1.0))  # an exponential's quantiles
        >>> [round(each.normalized.item(), 1) for each in comparison]
        [-7.7, -8.0, -8.0]

    Reference:
        Vuong, Econometrica 57 (1989), Equation 5.6; Clauset, Shalizi, Newman, SIAM Review 51 (2009), Section 5.
    """
    if xmin.shape != eigenvalues.shape[:-1]:
        raise ValueError(
            f"Expected argument `xmin` to be of shape {tuple(eigenvalues.shape[:-1])}, as the spectra are, but got "
            f"{tuple(xmin.shape)}."
        )
    values, start = eigenvalues.to(torch.float64), xmin.to(torch.float64).unsqueeze(-1)
    inside = (values >= start) & (start > 0)
    logs = (values / start).log().masked_fill(~inside, 0.0)  # y
    excess = logs.expm1()
    count = inside.sum(-1)
    usable = (count > 2) & (logs.amax(-1) > 0)
    mean, square, mean_excess = ((each.sum(-1) / count).masked_fill(~usable, 1.0) for each in (logs, logs**2, excess))
    power = -mean.log().unsqueeze(-1) - logs / mean.unsqueeze(-1)

    def ratio(density: Tensor, nested: int) -> LikelihoodRatio:
        differences = (power - density).masked_fill(~inside, 0.0)
        total = differences.sum(-1).masked_fill(~usable, torch.nan)
        deviations = (differences - (total / count).unsqueeze(-1)).masked_fill(~inside, 0.0)
        return LikelihoodRatio(total, deviations.square().sum(-1).sqrt(), torch.full_like(total, nested))

    exponential = _Law(torch.full_like(mean, -1.0), 1 / mean_excess, mean_excess.log())
    lognormal, truncated = _lognormal(mean.cpu(), square.cpu()), _truncated_power_law(mean.cpu(), mean_excess.cpu())
    return DistributionComparison(
        ratio(lognormal.log_density(logs, logs**2), 0),
        ratio(exponential.log_density(logs, excess), 0),
        ratio(truncated.log_density(logs, excess), 1),
    )


def _same(spread: Tensor) -> Tensor:
    """Largest ratio of a law to itself that rounding may leave."""
    return 1e-9 + 1e-9 * spread


class _Family(NamedTuple):
    """Family p(y) = exp(-a y - c h(y)) / Z, y >= 0: h, the integration bounds as functions of (a, c), the least a."""

    other: Callable[[Tensor], Tensor]
    ends: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
    least: float


class _Law(NamedTuple):
    """Members of a family, given by a, c and ln Z."""

    slope: Tensor
    factor: Tensor
    log_normaliser: Tensor

    def log_density(self, logs: Tensor, other: Tensor) -> Tensor:
        """Logarithm of the density at y (..., N), given h(y) as well."""
        slope, factor, log_normaliser = (each.to(logs).unsqueeze(-1) for each in self)
        return -slope * logs - factor * other - log_normaliser


def _ends_of_lognormal(slope: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    mode = (-slope / (2 * factor)).clamp(min=0)
    steepness = (slope + 2 * factor * mode).clamp(min=0)
    reach = 2 * _FAR / (steepness + (steepness**2 + 4 * factor * _FAR).sqrt())
    return (mode - reach).clamp(min=0), mode + reach


def _ends_of_truncated(slope: Tensor, factor: Tensor) -> tuple[Tensor, Tensor]:
    cut = ((_FAR + 5) / factor).log1p()
    return torch.zeros_like(cut), torch.where(slope > 0, cut.minimum(_FAR / slope), cut)


_LOGNORMAL = _Family(torch.square, _ends_of_lognormal, -torch.inf)
_TRUNCATED = _Family(torch.expm1, _ends_of_truncated, -1.0)  # alpha = a + 1 is not negative


def _lognormal(mean: Tensor, square: Tensor) -> _Law:
    """Fit the lognormal; the power law where y scatters at least as much as under it, for then there is no optimum."""
    variance = square - mean**2
    interior = (variance > 0) & (square < 2 * mean**2)
    return _fitted(_LOGNORMAL, (mean, square), (-mean / variance, 0.5 / variance), interior)


def _truncated_power_law(mean: Tensor, excess: Tensor) -> _Law:
    """The fit: the power law if its mean of x is not above the tail's, the exponential if alpha would be negative."""
    slope, rate = 1 / mean, 1 / excess
    power = (slope > 1) & (excess * (slope - 1) >= 1)
    exponential, (mean_of_exponential, _), _ = _law_and_moments(_TRUNCATED, torch.full_like(rate, -1.0), rate)
    bound = ~power & (mean_of_exponential <= mean)
    found = _fitted(_TRUNCATED, (mean, excess), (slope / 2, rate / 2), ~power & ~bound & rate.isfinite())
    return _Law(*(torch.where(bound, edge, each) for edge, each in zip(exponential, found, strict=True)))


def _fitted(family: _Family, means: tuple[Tensor, Tensor], start: tuple[Tensor, Tensor], interior: Tensor) -> _Law:
    """Maximise the likelihood, given the means of y and h, by damped Newton steps; a power law if not `interior`."""
    power = _Law(1 / means[0], torch.zeros_like(means[0]), means[0].log())
    mean, other = (each[interior] for each in means)
    slope, factor = (each[interior] for each in start)
    if not len(mean):
        return power
    shares = torch.tensor(_SHARES, dtype=torch.float64, device="cpu").unsqueeze(-1)
    for _ in range(_STEPS):
        law, found, (a, b, c) = _law_and_moments(family, slope, factor)
        first, second = found[0] - mean, found[1] - other  # the gradient; Newton's step divides it by the covariance
        steps = torch.stack([c * first - b * second, a * second - b * first]) / (a * c - b * b)
        room = torch.stack([slope - family.least, factor])
        longest = (-_TOWARDS_BOUND * room / steps).masked_fill(~(steps < 0), 1.0).amin(0).clamp(max=1.0)
        slopes, factors = slope + shares * longest * steps[0], factor + shares * longest * steps[1]
        likelihood = -(slopes * mean + factors * other + _integrated(family, slopes, factors)[0])
        highest, best = likelihood.nan_to_num(-torch.inf).max(0, keepdim=True)
        gain = highest.squeeze(0) + slope * mean + factor * other + law.log_normaliser
        slope, factor = slopes.gather(0, best).squeeze(0), factors.gather(0, best).squeeze(0)
        if bool((gain <= _CONVERGED * (1 + highest.abs())).all()):
            break
    law, _, _ = _law_and_moments(family, slope, factor)
    return _Law(*(whole.masked_scatter(interior, part) for whole, part in zip(power, law, strict=True)))


def _law_and_moments(
    family: _Family, slope: Tensor, factor: Tensor
) -> tuple[_Law, tuple[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]:
    """The laws (...), the means of y and h under them, and (variance of y, covariance, variance of h)."""
    log_normaliser, logs, other, masses = _integrated(family, slope, factor)
    shares = masses / masses.sum(-1, keepdim=True)
    first, second = (shares * logs).sum(-1), (shares * other).sum(-1)
    from_first, from_second = logs - first.unsqueeze(-1), other - second.unsqueeze(-1)
    weighted = shares * from_second
    variances = (shares * from_first**2).sum(-1), (weighted * from_first).sum(-1), (weighted * from_second).sum(-1)
    return _Law(slope, factor, log_normaliser), (first, second), variances


def _integrated(family: _Family, slope: Tensor, factor: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The logarithm of Z (...), and at the nodes (..., Q) y, h(y) and the weighted integrand relative to its peak."""
    low, high = (end.unsqueeze(-1) for end in family.ends(slope, factor))
    nodes, weights = _gauss_legendre()
    logs = low + (high - low) * nodes
    other = family.other(logs)
    exponent = -slope.unsqueeze(-1) * logs - factor.unsqueeze(-1) * other
    peak = exponent.amax(-1, keepdim=True)
    masses = (exponent - peak).exp() * weights
    log_normaliser = (masses.sum(-1, keepdim=True) * (high - low)).log() + peak
    return log_normaliser.squeeze(-1), logs, other, masses


@lru_cache(maxsize=1)
def _gauss_legendre() -> tuple[Tensor, Tensor]:
    """Nodes and weights on [0, 1], from the eigenvectors of the polynomials' recurrence (Golub and Welsch, 1969)."""
    order = torch.arange(1, _NODES, dtype=torch.float64, device="cpu")
    beside = order / (4 * order**2 - 1).sqrt()
    nodes, vectors = torch.linalg.eigh(beside.diag(1) + beside.diag(-1))
    return (nodes + 1) / 2, vectors[0] ** 2
