"""Fits without the eigenvalues that stand out from a spectrum.

Eigenvalues above the Tracy-Widom threshold of the Marchenko-Pastur law stand out if that law describes the bulk and
they are few. If they are many, or the law does not describe the bulk (a spectrum that is a power law throughout), they
are a tail of their own: then only those of them stand out that a gap separates from the tail.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_farms.analysis.method import SpectralMethod
from lightning_farms.functional.outlier_eigenvalues import separated_eigenvalues
from lightning_farms.functional.random_matrix import MarchenkoPasturFit

_FEW = 5  # eigenvalues of a matrix, or per cent of them, that count as few
_MISFIT = 0.05  # distance of the distribution functions, beyond the spikes' share, above which the law misfits


def count_outliers(spectra: Tensor, xmin: Tensor, law: MarchenkoPasturFit | None, size: int) -> Tensor:
    """Count the eigenvalues that stand out of each spectrum (B, n); ``law`` is that of matrices of ``size`` values."""
    if law is None or bool(law.spike_threshold.isnan()):
        return separated_eigenvalues(spectra, xmin)
    threshold = law.spike_threshold.expand(len(spectra))
    few = law.spikes <= max(_FEW, _FEW / 100 * size)
    if bool(few & (law.ks_distance <= law.spikes / size + _MISFIT)):
        return (spectra > threshold.unsqueeze(-1)).sum(-1)
    return separated_eigenvalues(spectra, xmin, threshold=threshold)


def alphas_without(spectra: Tensor, alphas: Tensor, counts: Tensor, method: SpectralMethod, least: int) -> Tensor:
    """Fit alphas (B,) without the ``counts`` largest values of each spectrum; NaN if fewer than ``least`` are left."""
    found = alphas.clone()
    ordered = spectra.sort(dim=-1).values
    for count in counts.unique().tolist():
        chosen = counts == count
        left = ordered.shape[-1] - count
        if count and left >= least:
            found[chosen] = method.fit_tail(ordered[chosen, :left]).alpha.to(found)
        elif count:
            found[chosen] = torch.nan
    return found
