"""Analysis of a whole model: equal windows of all layers are decomposed together, then every layer is fitted."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn

from lightning_farms.analysis.method import FARMS, SpectralMethod
from lightning_farms.analysis.report import LayerSpectrum, SpectralReport
from lightning_farms.analysis.weights import LayerWeight, layer_weights
from lightning_farms.functional.power_law import PowerLawFit
from lightning_farms.functional.spectrum import esd, stable_rank
from lightning_farms.functional.submatrices import Windows

MIN_EIGENVALUES = 10
"""Fewest eigenvalues that are fitted; a layer with fewer is skipped, and blocks with fewer are pooled."""

_WORKSPACE = 2**26  # float64 entries of one batch of windows and their Gram matrices: 512 MiB
_ROUNDING = torch.finfo(torch.float32).eps ** 2  # eigenvalues below this (times size and largest) are rounding
_LARGEST_ALPHA = 1e3  # beyond it the tail lies within 0.1 % of xmin: equal eigenvalues, not a power law

_DecompositionError = torch.linalg.LinAlgError  # type: ignore[attr-defined]


def analyze(model: nn.Module, method: SpectralMethod = FARMS(), *, keep_eigenvalues: bool = False) -> SpectralReport:
    """Spectrum and power-law fit of every weight matrix of a model, on the device the weights are on.

    Nothing is changed and no gradient is recorded. A layer that cannot be analysed (too few eigenvalues, weights that
    are not finite, more than half of the eigenvalues zero, ...) is a row of status ``"skipped"`` with the reason.

    Args:
        model: any module; :func:`lightning_farms.analysis.module_weights` says which matrices it holds.
        method: :class:`FARMS` or :class:`WholeMatrix`.
        keep_eigenvalues: whether the rows hold their eigenvalues.

    Returns:
        The report, one row a weight in the model's order.

    Raises:
        TypeError: ``model`` is not a module, or ``method`` not a method (an instance, not a class).

    Example:
        >>> _ = torch.manual_seed(0)
        >>> report = analyze(nn.Sequential(nn.Linear(512, 64), nn.ReLU(), nn.Linear(64, 64)))
        >>> {name: round(alpha, 2) for name, alpha in report.alphas.items()}
        {'0': 2.08, '2': 2.13}
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected argument `model` to be a torch.nn.Module, but got {type(model).__name__}.")
    if not isinstance(method, SpectralMethod):
        raise TypeError(f"Expected argument `method` to be FARMS(...) or WholeMatrix(...), but got {method!r}.")
    with torch.no_grad():
        weights = list(layer_weights(model))
        plans, reasons = _plan(weights, method)
        spectra, failures = _decompose(weights, plans, method)
        rows = _fit(weights, plans, spectra, method, keep_eigenvalues)
    for index, reason in (reasons | failures).items():
        rows[index] = _skipped(weights[index], reason)
    return SpectralReport([rows[index] for index in range(len(weights))])


def _skipped(weight: LayerWeight, reason: str) -> LayerSpectrum:
    return LayerSpectrum(weight.name, weight.kind, weight.shape, status="skipped", reason=reason)


def _plan(weights: list[LayerWeight], method: SpectralMethod) -> tuple[dict[int, Windows], dict[int, str]]:
    """Windows of every layer that can be analysed, and the reason for every other."""
    plans: dict[int, Windows] = {}
    reasons: dict[int, str] = {}
    finite = _all_finite(weights)
    for index, weight in enumerate(weights):
        reason = _unusable(weight, method) or (None if finite.get(index, True) else "the weights are not all finite")
        if reason is None:
            try:
                oriented = method.orient(weight.matrices, weight.kind)
                plans[index] = method.windows(oriented.shape[-2], oriented.shape[-1], weight.kind)
                reason = _too_few(weight, plans[index], method)
            except ValueError as error:
                reason = str(error)
        if reason is not None:
            plans.pop(index, None)
            reasons[index] = reason
    return plans, reasons


def _unusable(weight: LayerWeight, method: SpectralMethod) -> str | None:
    if weight.matrices.is_meta:
        return "the weights are on the meta device, without values"
    if not (weight.matrices.is_floating_point() or weight.matrices.is_complex()):
        return f"the weights are of type {weight.matrices.dtype}, not real or complex numbers"
    if 0 in weight.matrices.shape:
        return "the weight is empty"
    if min(weight.matrices.shape[-2:]) == 1 and method.compat is None:
        return f"the matrix is a vector, {weight.matrices.shape[-2]} x {weight.matrices.shape[-1]}"
    grouped = weight.kind == "convolution" and weight.matrices.shape[-2] != weight.shape[0]
    return method.refusal(weight.kind, len(weight.shape), grouped)


def _too_few(weight: LayerWeight, windows: Windows, method: SpectralMethod) -> str | None:
    count = windows.number * weight.matrices.shape[0] * min(windows.height, windows.width)
    least = MIN_EIGENVALUES if method.compat is None else 2
    return None if count >= least else f"{count} eigenvalues, fewer than the {least} that are fitted"


def _all_finite(weights: list[LayerWeight]) -> dict[int, bool]:
    """Whether each weight is finite, with one transfer from each device."""
    by_device: dict[torch.device, list[int]] = defaultdict(list)
    for index, weight in enumerate(weights):
        if not weight.matrices.is_meta and (weight.matrices.is_floating_point() or weight.matrices.is_complex()):
            by_device[weight.matrices.device].append(index)
    finite: dict[int, bool] = {}
    for indices in by_device.values():
        flags = torch.stack([_promoted(weights[index].matrices).isfinite().all() for index in indices]).tolist()
        finite.update(zip(indices, flags, strict=True))
    return finite


def _decompose(
    weights: list[LayerWeight], plans: dict[int, Windows], method: SpectralMethod
) -> tuple[dict[int, Tensor], dict[int, str]]:
    """Eigenvalues (blocks, P, k) of every planned layer; the reason for a layer whose decomposition fails."""
    groups: dict[tuple[object, ...], list[int]] = defaultdict(list)
    for index, windows in plans.items():
        matrices = weights[index].matrices
        groups[matrices.device, matrices.is_complex(), windows.height, windows.width].append(index)
    spectra: dict[int, Tensor] = {}
    failures: dict[int, str] = {}
    for indices in groups.values():
        try:
            spectra.update(_decompose_group(indices, weights, plans, method))
        except _DecompositionError:
            for index in indices:
                try:
                    spectra.update(_decompose_group([index], weights, plans, method))
                except _DecompositionError as error:
                    failures[index] = f"the eigenvalue decomposition failed: {error}"
    for index in failures:
        plans.pop(index)
    return spectra, failures


def _decompose_group(
    indices: list[int], weights: list[LayerWeight], plans: dict[int, Windows], method: SpectralMethod
) -> dict[int, Tensor]:
    """Decompose layers whose windows have one size, in batches that fit the workspace."""
    windows = plans[indices[0]]
    smaller = min(windows.height, windows.width)
    most = max(1, _WORKSPACE // (windows.height * windows.width + 2 * smaller * smaller))
    pieces: dict[int, list[Tensor]] = {index: [] for index in indices}
    batch: list[tuple[int, Tensor]] = []
    queued = 0

    def flush() -> None:
        if batch:
            eigenvalues = esd(torch.cat([_promoted(view) for _, view in batch]))
            parts = eigenvalues.split([len(view) for _, view in batch])
            for index, part in zip((index for index, _ in batch), parts, strict=True):
                pieces[index].append(part * method.eigenvalue_scale(weights[index].kind))
            batch.clear()

    for index in indices:
        for view in _views(method.orient(weights[index].matrices, weights[index].kind), plans[index], most):
            if queued + len(view) > most:
                flush()
                queued = 0
            batch.append((index, view))
            queued += len(view)
    flush()
    return {index: torch.cat(pieces[index]).unflatten(0, (plans[index].number, -1)) for index in indices}


def _promoted(view: Tensor) -> Tensor:
    """Half precision and less to float32, so that views of different types can be joined."""
    return view if view.is_complex() or view.dtype == torch.float64 else view.float()


def _views(matrices: Tensor, windows: Windows, most: int) -> Iterator[Tensor]:
    """Views (at most ``most``, m', n') of every window, all matrices of one window together."""
    for row in windows.row_starts:
        for column in windows.column_starts:
            block = matrices[:, row : row + windows.height, column : column + windows.width]
            yield from block.split(most)


def _fit(
    weights: list[LayerWeight],
    plans: dict[int, Windows],
    spectra: dict[int, Tensor],
    method: SpectralMethod,
    keep_eigenvalues: bool,
) -> dict[int, LayerSpectrum]:
    """Fit every decomposed layer; numbers leave each device once."""
    by_device: dict[torch.device, dict[int, Tensor]] = defaultdict(dict)
    for index, eigenvalues in spectra.items():
        size = max(weights[index].matrices.shape[-2:])
        numbers = _layer_numbers(eigenvalues, weights[index].kind, size, method)
        by_device[eigenvalues.device][index] = numbers
    rows: dict[int, LayerSpectrum] = {}
    for layers in by_device.values():
        for index, values in zip(layers, torch.stack(list(layers.values())).tolist(), strict=True):
            row = _row(weights[index], plans[index], spectra[index].numel(), values)
            if keep_eigenvalues:
                row = replace(row, eigenvalues=spectra[index].flatten().sort().values.cpu())
            rows[index] = row
    return rows


def _layer_numbers(eigenvalues: Tensor, kind: str, size: int, method: SpectralMethod) -> Tensor:
    """The layer's fit and norms as one vector: alpha, D, xmin, norms and ranks, and how many fits went how."""
    blocks, positions, count = eigenvalues.shape
    few = positions * count < MIN_EIGENVALUES and method.compat is None
    pooled = method.pools_blocks(kind, positions) or few
    fitted = eigenvalues.reshape(1 if pooled else blocks, -1)
    fit = method.fit_tail(fitted)
    usable, deficient, flat = _usable(fit, fitted, size, method)
    measured = eigenvalues if method.compat is None else fitted
    norms = measured.amax(-1), measured.sum(-1), stable_rank(measured)
    if method.compat is None:
        spectral, frobenius, rank = (norm.nanmean() for norm in norms)
        alpha = _mean_where(usable, fit.alpha)
        alpha_hat = alpha * spectral.log10()
    else:
        spectral, frobenius, rank = (norm.mean() for norm in norms)
        alpha = fit.alpha.mean()
        alpha_hat = (fit.alpha * norms[0].log10()).mean()
    distance, xmin = _mean_where(usable, fit.ks_distance), _mean_where(usable, fit.xmin)
    counts = [flags.sum().to(alpha) for flags in (usable, deficient, flat, torch.ones_like(usable))]
    return torch.stack([alpha, distance, xmin, spectral, frobenius, rank, alpha_hat, *counts])


def _usable(fit: PowerLawFit, eigenvalues: Tensor, size: int, method: SpectralMethod) -> tuple[Tensor, Tensor, Tensor]:
    """Which fits hold, which have an xmin that is rounding, and which have a tail of equal eigenvalues."""
    if method.compat is not None:
        usable = fit.alpha.isfinite()
        return usable, torch.zeros_like(usable), ~usable
    deficient = fit.xmin <= _ROUNDING * size * eigenvalues.amax(-1)
    flat = ~deficient & ~(fit.alpha <= _LARGEST_ALPHA)
    return ~(deficient | flat), deficient, flat


def _mean_where(usable: Tensor, values: Tensor) -> Tensor:
    """Mean of the usable values, NaN where there is none."""
    return values.masked_fill(~usable, torch.nan).nanmean()


def _row(weight: LayerWeight, windows: Windows, count: int, values: list[float]) -> LayerSpectrum:
    *numbers, usable, deficient, _, fits = values
    alpha, distance, xmin, spectral, frobenius, rank, alpha_hat = numbers
    row = LayerSpectrum(
        name=weight.name,
        kind=weight.kind,
        shape=weight.shape,
        aspect_ratio=windows.aspect_ratio,
        windows=windows.number,
        eigenvalue_count=count,
        alpha=alpha,
        ks_distance=distance,
        xmin=xmin,
        spectral_norm=spectral,
        frobenius_norm_squared=frobenius,
        stable_rank=rank,
        alpha_hat=alpha_hat,
    )
    if usable == 0 or not math.isfinite(alpha):
        row = replace(row, alpha=math.nan, alpha_hat=math.nan)
        reason = (
            "the matrix is rank-deficient: the tail starts at an eigenvalue that is zero to rounding"
            if deficient > 0
            else "the tail's eigenvalues are equal to rounding, or no fit was found: not a power law"
        )
        return replace(row, status="skipped", reason=reason)
    remarks = []
    if windows.shrunk:
        remarks.append(f"window shrunk to {windows.height} x {windows.width} to fit the matrix")
    if usable < fits:
        remarks.append(f"{fits - usable:.0f} of {fits:.0f} blocks left out: rank-deficient or with equal eigenvalues")
    return replace(row, reason="; ".join(remarks))
