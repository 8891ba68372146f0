"""Computes layers' numbers from their eigenvalues, on the device, and a layer's row of the report from its numbers."""

from __future__ import annotations

import math
import zlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis._engine.failures import attempted
from lightning_farms.analysis._engine.outlier_eigenvalues import alphas_without, count_outliers
from lightning_farms.analysis._engine.plan import MIN_EIGENVALUES, Plan
from lightning_farms.analysis._engine.spectrum import Spectrum
from lightning_farms.analysis.diagnostics import Diagnostics
from lightning_farms.analysis.layer_spectrum import ON_REQUEST, LayerSpectrum, Status
from lightning_farms.analysis.method import SpectralMethod
from lightning_farms.analysis.weights._products import factor_remark
from lightning_farms.functional.distributions import compare_distributions
from lightning_farms.functional.eigensolvers import Way
from lightning_farms.functional.power_law import PowerLawFit
from lightning_farms.functional.random_matrix import MarchenkoPasturFit, fit_marchenko_pastur
from lightning_farms.functional.spectral_metrics import effective_rank, stable_rank
from lightning_farms.functional.spectrum import QUICK_ERROR
from lightning_farms.functional.uncertainty import bootstrap_interval, goodness_of_fit

_ZERO = torch.finfo(torch.float32).eps ** 2  # times the size: share of the largest eigenvalue that is rounding
_LARGEST_ALPHA = 1e3  # beyond it the tail lies within 0.1 % of xmin: equal eigenvalues, not a power law

METRICS = (
    "alpha",
    "ks_distance",
    "xmin",
    "tail_size",
    "standard_error",
    "alpha_low",
    "alpha_high",
    "p_value",
    "spectral_norm",
    "frobenius_norm_squared",
    "stable_rank",
    "effective_rank",
    "alpha_hat",
    "mp_variance",
    "mp_lower_edge",
    "mp_upper_edge",
    "mp_spike_threshold",
    "mp_spikes",
    "mp_soft_rank",
    *ON_REQUEST,
)
"""Names of the first numbers of a layer, as in :class:`LayerSpectrum`."""

CHECKS = ("sum_error", "squares_error")
"""Names of the errors of the eigenvalues' sums, see :func:`lightning_farms.functional.checked_esd`."""

_WAYS = tuple(Way)
_COUNTS = ("usable", "deficient", "fits", "rounding", *CHECKS, "way")
NUMBERS = (*METRICS, *_COUNTS)
"""Names of all numbers: metrics, counts of fits, the bound on alpha's rounding error, checks, and the routine."""


class _Tail(NamedTuple):
    """Fits (..., F) of layers' spectra (..., F, N), one per layer or one per block, and which of them are usable."""

    spectra: Tensor
    fit: PowerLawFit
    usable: Tensor
    deficient: Tensor

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean of the usable fits' values; NaN if no fit is usable."""
        return torch.where(self.usable, values, 0.0).sum(-1) / self.usable.sum(-1)

    def of_layer(self, index: int) -> _Tail:
        """Return the fits of one layer."""
        fit = PowerLawFit(*(each[index] for each in self.fit))
        return _Tail(self.spectra[index], fit, self.usable[index], self.deficient[index])


def measure_each(
    spectra: Mapping[int, Spectrum], plans: Mapping[int, Plan], method: SpectralMethod, wanted: Diagnostics
) -> dict[int, Tensor | Exception]:
    """Return every layer's ``NUMBERS``, or the error that it raised; layers of one form are measured together."""
    forms: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, spectrum in spectra.items():
        forms[_form(spectrum, plans[index])].append(index)

    def of(group: Sequence[int]) -> dict[int, Tensor]:
        rows = measure([spectra[i] for i in group], [plans[i] for i in group], method, wanted)
        return dict(zip(group, rows, strict=True))

    found: dict[int, Tensor | Exception] = {}
    for group in forms.values():
        together = attempted(of, group)
        if not isinstance(together, Exception):
            found |= together
            continue
        for index in group:
            alone = attempted(of, [index])
            found |= {index: alone} if isinstance(alone, Exception) else alone
    return found


def _form(spectrum: Spectrum, plan: Plan) -> tuple[object, ...]:
    """Return the form that layers must have in common to be measured together."""
    matrices, windows = plan.matrices, plan.windows
    place = (spectrum.eigenvalues.device, spectrum.eigenvalues.shape, spectrum.way)
    return (*place, plan.weight.kind, matrices.shape[-2:], matrices.is_complex(), windows.height, windows.width)


def measure(spectra: Sequence[Spectrum], plans: Sequence[Plan], method: SpectralMethod, wanted: Diagnostics) -> Tensor:
    """Measure L layers of one form: (L, ``NUMBERS``), where a layer's numbers do not depend on the other layers.

    Nothing waits for the device, except a scan over xmin or diagnostics.
    """
    plan = plans[0]
    eigenvalues = torch.stack([each.eigenvalues for each in spectra]) * method.eigenvalue_scale(plan.weight.kind)
    tail = _fit(eigenvalues, plan, method)
    numbers = dict.fromkeys(NUMBERS, eigenvalues.new_full((len(plans),), math.nan))
    numbers |= _fit_numbers(tail)
    numbers |= _norms(eigenvalues, tail, method)
    numbers |= _diagnosed(eigenvalues, tail, plans, method, wanted)
    numbers["rounding"] = _rounding(eigenvalues, plan, tail.fit)
    numbers |= {name: torch.stack([getattr(each, name) for each in spectra]) for name in CHECKS}
    numbers["way"] = eigenvalues.new_full((len(plans),), _WAYS.index(spectra[0].way))
    return torch.stack([numbers[name].to(eigenvalues) for name in NUMBERS], dim=-1)


def _diagnosed(
    eigenvalues: Tensor, tail: _Tail, plans: Sequence[Plan], method: SpectralMethod, wanted: Diagnostics
) -> dict[str, Tensor]:
    """Compute the diagnostics that were asked for, layer by layer."""
    if not wanted.of_own_spectrum:
        return {}
    layers = [_details(each, tail.of_layer(i), plans[i], method, wanted) for i, each in enumerate(eigenvalues)]
    return {name: torch.stack([numbers[name].to(eigenvalues) for numbers in layers]) for name in layers[0]}


def _details(
    eigenvalues: Tensor, tail: _Tail, plan: Plan, method: SpectralMethod, wanted: Diagnostics
) -> dict[str, Tensor]:
    numbers = _draws(tail, plan.weight.name, method, wanted)
    law = _law(eigenvalues, plan) if wanted.marchenko_pastur or wanted.outliers else None
    if law is not None:
        numbers |= _bulk(law)
    if wanted.outliers:
        numbers |= _without_outliers(tail, law, plan, method)
    if wanted.distributions:
        numbers |= _other_laws(tail)
    return numbers


def _fit(eigenvalues: Tensor, plan: Plan, method: SpectralMethod) -> _Tail:
    layers, blocks, positions, count = eigenvalues.shape
    few = positions * count < MIN_EIGENVALUES and method.compat is None
    pooled = method.pools_blocks(plan.weight.kind, positions) or few
    spectra = eigenvalues.reshape(layers, 1 if pooled else blocks, -1)
    fit = method.fit_tail(spectra)
    if method.compat is not None:
        usable = fit.alpha.isfinite().all(-1, keepdim=True).expand_as(fit.alpha)
        return _Tail(spectra, fit, usable, torch.zeros_like(usable))
    deficient = fit.xmin <= _ZERO * max(plan.matrices.shape[-2:]) * spectra.amax(-1)
    return _Tail(spectra, fit, ~deficient & (fit.alpha <= _LARGEST_ALPHA), deficient)


def _fit_numbers(tail: _Tail) -> dict[str, Tensor]:
    usable = tail.usable.sum(-1)
    return {
        "alpha": tail.mean(tail.fit.alpha),
        "ks_distance": tail.mean(tail.fit.ks_distance),
        "xmin": tail.mean(tail.fit.xmin),
        "tail_size": tail.fit.tail_size.masked_fill(~tail.usable, 0).sum(-1),
        "standard_error": _in_quadrature(tail.fit.standard_error, tail.usable) / usable,
        "usable": usable,
        "deficient": tail.deficient.sum(-1),
        "fits": torch.full_like(usable, tail.spectra.shape[-2]),
    }


def _norms(eigenvalues: Tensor, tail: _Tail, method: SpectralMethod) -> dict[str, Tensor]:
    """Return norms averaged over windows; under compat, over the fitted spectra as in the authors' program."""
    measured = eigenvalues.flatten(1, 2) if method.compat is None else tail.spectra
    largest = measured.amax(-1)
    spectral = largest.mean(-1)
    if method.compat is None:
        alpha_hat = tail.mean(tail.fit.alpha) * spectral.log10()
    else:
        alpha_hat = (tail.fit.alpha * largest.log10()).mean(-1)
    return {
        "spectral_norm": spectral,
        "frobenius_norm_squared": measured.sum(-1).mean(-1),
        "stable_rank": stable_rank(measured).nanmean(-1),
        "effective_rank": effective_rank(measured).nanmean(-1),
        "alpha_hat": alpha_hat,
    }


def _draws(tail: _Tail, name: str, method: SpectralMethod, wanted: Diagnostics) -> dict[str, Tensor]:
    numbers = {}
    seed = layer_seed(name, wanted.seed)
    if wanted.bootstrap:
        low, high = bootstrap_interval(
            tail.spectra, method.fit_tail, draws=wanted.bootstrap, level=wanted.level, seed=seed
        )
        alpha, fits = tail.mean(tail.fit.alpha), tail.usable.sum()
        below, above = (tail.fit.alpha - low).clamp(min=0), (high - tail.fit.alpha).clamp(min=0)
        numbers["alpha_low"] = alpha - _in_quadrature(below, tail.usable) / fits
        numbers["alpha_high"] = alpha + _in_quadrature(above, tail.usable) / fits
    if wanted.p_value:
        p_value = goodness_of_fit(tail.spectra, method.fit_tail, draws=wanted.p_value, seed=seed)
        numbers["p_value"] = tail.mean(p_value)
    return numbers


def _in_quadrature(errors: Tensor, usable: Tensor) -> Tensor:
    """Return the error of a sum of independent fits."""
    return errors.masked_fill(~usable, 0).square().sum(-1).sqrt()


def layer_seed(name: str, seed: int) -> int:
    """Return a layer's own seed, the same on every machine and whichever other layers there are."""
    return zlib.crc32(f"{seed}/{name}".encode())


def _law(eigenvalues: Tensor, plan: Plan) -> MarchenkoPasturFit | None:
    """Fit the Marchenko-Pastur law to the bulk of all windows; None for products of low rank."""
    if plan.spectrum_size < plan.gram_size:
        return None
    windows = plan.windows
    return fit_marchenko_pastur(
        eigenvalues.flatten(0, 1), windows.height, windows.width, complex_entries=plan.matrices.is_complex()
    )


def _bulk(law: MarchenkoPasturFit) -> dict[str, Tensor]:
    return {
        "mp_variance": law.variance,
        "mp_lower_edge": law.lower_edge,
        "mp_upper_edge": law.upper_edge,
        "mp_spike_threshold": law.spike_threshold,
        "mp_spikes": law.spikes,
        "mp_soft_rank": law.soft_rank,
    }


def _without_outliers(
    tail: _Tail, law: MarchenkoPasturFit | None, plan: Plan, method: SpectralMethod
) -> dict[str, Tensor]:
    counts = count_outliers(tail.spectra, tail.fit.xmin, law, plan.spectrum_size)
    alphas = alphas_without(tail.spectra, tail.fit.alpha, counts, method, MIN_EIGENVALUES)
    return {
        "outlier_eigenvalues": counts.masked_fill(~tail.usable, 0).sum(),
        "alpha_without_outliers": tail.mean(alphas),
    }


def _other_laws(tail: _Tail) -> dict[str, Tensor]:
    numbers: dict[str, Tensor] = {}
    for name, ratio in compare_distributions(tail.spectra, tail.fit.xmin)._asdict().items():
        of_layer, start = ratio.summed(tail.usable), name.removesuffix("_power_law")
        numbers |= {f"{start}_ratio": of_layer.normalized, f"{start}_p": of_layer.p_value}
    return numbers


def _rounding(eigenvalues: Tensor, plan: Plan, fit: PowerLawFit) -> Tensor:
    r"""Bound alpha's error if the spectra are quick: :math:`(\alpha - 1)^2 (\epsilon \lambda_{rms} + u) / x_{min}`.

    The bound follows from :math:`\partial \alpha / \partial \ln x_{min} = (\alpha - 1)^2`. The error of xmin counts
    most, as the errors of the other eigenvalues are relatively smaller and average out. :math:`u` is what products
    that underflow add up to: m'n' times the smallest normal number.
    """
    root_mean_square = eigenvalues.square().mean(-1).amax((-2, -1)).sqrt().unsqueeze(-1)
    underflow = plan.windows.height * plan.windows.width * torch.finfo(torch.float32).tiny
    error = QUICK_ERROR * root_mean_square + underflow
    return ((fit.alpha - 1).square() * error / fit.xmin).nan_to_num(torch.inf).amax(-1)


def layer_row(plan: Plan, values: list[float]) -> LayerSpectrum:
    """Return a layer's row of the report, made from its numbers."""
    numbers: dict[str, Any] = dict(zip(NUMBERS, values, strict=True))
    counts = {name: numbers.pop(name) for name in _COUNTS}
    remarks = [_no_fit(counts)] if not counts["usable"] else _remarks(plan, counts)
    remarks += filter(None, [plan.weight.remark, factor_remark(plan.weight.name)])
    reason = "; ".join(remarks + _found_by_checks(counts))
    if not counts["usable"]:
        numbers |= dict.fromkeys(("alpha", "tail_size", "standard_error", "alpha_hat", *ON_REQUEST), math.nan)
    return LayerSpectrum(
        name=plan.weight.name,
        kind=plan.weight.kind,
        shape=plan.weight.shape,
        aspect_ratio=plan.windows.aspect_ratio,
        windows=plan.windows.number,
        coverage=plan.windows.coverage(*plan.matrices.shape[-2:]),
        eigenvalue_count=plan.eigenvalue_count,
        log_norm=_log10(numbers["frobenius_norm_squared"]),
        log_spectral_norm=_log10(numbers["spectral_norm"]),
        status=Status.OK if counts["usable"] else Status.SKIPPED,
        reason=reason,
        layout=plan.weight.layout,
        way=_way(counts),
        **numbers,
    )


def _way(counts: dict[str, float]) -> str:
    way = _WAYS[int(counts["way"])]
    return "" if way is Way.CPU or way.by_scipy else way.value


def _no_fit(counts: dict[str, float]) -> str:
    if counts["deficient"]:
        return "the matrix is rank-deficient, and its tail would start at an eigenvalue that is zero up to rounding"
    return "the tail is not a power law: its eigenvalues are equal up to rounding, or no fit was found"


def _found_by_checks(counts: dict[str, float]) -> list[str]:
    """Say why the eigenvalues were computed again; empty if they were not."""
    of_sum, of_squares = (counts[name] for name in CHECKS)
    again = "they were computed again in float64 on the CPU"
    if not (of_sum or of_squares):
        return []
    if math.isnan(of_sum) or math.isnan(of_squares):
        return [
            "the eigenvalue decomposition failed, so that the eigenvalues were computed again in float64 on the CPU"
        ]
    if math.isinf(of_sum) or math.isinf(of_squares):
        return [f"eigenvalues failed a check (they were not all finite), so that {again}"]
    which, error = ("sum", of_sum) if of_sum else ("sum of squares", of_squares)
    return [f"eigenvalues failed a check (the relative error of their {which} was {_short(error)}), so that {again}"]


def _short(value: float) -> str:
    """Return a number as text with one digit, such as ``3e-2``."""
    digit, exponent = f"{value:.0e}".split("e")
    return f"{digit}e{int(exponent)}"


def _remarks(plan: Plan, counts: dict[str, float]) -> list[str]:
    remarks = []
    if plan.windows.shrunk:
        remarks.append(f"the window was shrunk to {plan.windows.height} x {plan.windows.width} to fit the matrix")
    unused, fits = counts["fits"] - counts["usable"], counts["fits"]
    if unused:
        remarks.append(f"{unused:.0f} of {fits:.0f} blocks were left out as rank-deficient, or for equal eigenvalues")
    return remarks


def _log10(value: float) -> float:
    if value == 0:
        return -math.inf
    return math.log10(value) if value > 0 else math.nan
