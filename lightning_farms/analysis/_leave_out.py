"""Fits without the eigenvalues that stand out from a spectrum.

Those are what lies above the Tracy-Widom threshold of the Marchenko-Pastur law, where that describes the bulk and they
are few. Where they are many, or it does not (a spectrum that is a power law all through), they are a tail of its own:
then only those of them that a gap separates from the tail.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_farms.analysis.method import SpectralMethod
from lightning_farms.functional.outlier_eigenvalues import separated_eigenvalues
from lightning_farms.functional.random_matrix import MarchenkoPasturFit

_FEW = 5  # of a matrix, or that share in per cent
_MISFIT = 0.05  # of the distribution functions, beyond the spikes' own share: the law does not describe the bulk


def count_outliers(spectra: Tensor, xmin: Tensor, law: MarchenkoPasturFit | None, size: int) -> Tensor:
    """How many of the largest of each spectrum (B, n) stand out; ``law`` is that of matrices of ``size`` values."""
    if law is None or bool(law.spike_threshold.isnan()):
        return separated_eigenvalues(spectra, xmin)
    threshold = law.spike_threshold.expand(len(spectra))
    few = law.spikes <= max(_FEW, _FEW / 100 * size)
    if bool(few & (law.ks_distance <= law.spikes / size + _MISFIT)):
        return (spectra > threshold.unsqueeze(-1)).sum(-1)
    return separated_eigenvalues(spectra, xmin, threshold=threshold)


def alphas_without(spectra: Tensor, alphas: Tensor, counts: Tensor, method: SpectralMethod, least: int) -> Tensor:
    """Alphas (B,) without the ``counts`` largest of each spectrum; NaN where fewer than ``least`` are left."""
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
