"""Plans of layers: the windows on a weight, or why it is skipped; index arithmetic only, no values."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis.layer_spectrum import LayerSpectrum, Status
from lightning_farms.analysis.method import SpectralMethod
from lightning_farms.analysis.weights.layer_weight import NO_MATRICES, LayerWeight
from lightning_farms.common.quantities import counted
from lightning_farms.functional.submatrices import Windows

MIN_EIGENVALUES = 10
"""Fewest eigenvalues that are fitted; a layer with fewer is skipped, and blocks with fewer are pooled."""

_SPARE = 8  # rows beyond a known rank, so that no direction is nearly missed by chance
_CALL = 1e6  # multiplications that take as long as calling the decomposition of a tiny matrix


class Plan(NamedTuple):
    """A layer to be analysed: its weight, the matrices (P, m, n) as the method orients them, and the windows."""

    weight: LayerWeight
    matrices: Tensor
    windows: Windows

    @property
    def gram_size(self) -> int:
        """Rows of the smaller Gram matrix of a window."""
        return min(self.windows.height, self.windows.width)

    @property
    def spectrum_size(self) -> int:
        """Number of eigenvalues of one window, without those that are zero whatever the entries are."""
        return self.gram_size if self.weight.rank is None else min(self.gram_size, self.weight.rank)

    @property
    def eigenvalue_count(self) -> int:
        """Number of eigenvalues of all windows of all matrices."""
        return self.windows.number * len(self.matrices) * self.spectrum_size

    @property
    def cost(self) -> float:
        """Multiplications of the Gram matrices and their decompositions, roughly."""
        k, long = self.gram_size, max(self.windows.height, self.windows.width)
        of_complex = 4.0 if self.matrices.is_complex() else 1.0
        if self.compressed_side:
            k = self.compressed_size
        each = of_complex * k * k * (long + 4.0 * k) + _CALL
        once = 2.0 * of_complex * k * self.matrices[0].numel() if self.compressed_side else 0.0
        return len(self.matrices) * (self.windows.number * each + once)

    @property
    def compressed_size(self) -> int:
        """Number of rows or columns that suffices for matrices of the known rank, with some to spare."""
        return (self.weight.rank or 0) + _SPARE

    @property
    def compressed_side(self) -> Literal["rows", "columns"] | None:
        """The side that windows take whole and that can be made much shorter; None if neither side is both."""
        if self.weight.rank is None or 2 * self.compressed_size >= self.gram_size:
            return None
        rows, columns = self.matrices.shape[-2:]
        if self.windows.height == rows:
            return "rows"
        return "columns" if self.windows.width == columns else None

    def without_values(self) -> Plan:
        """Return the plan with shapes and types only, which holds no memory."""
        return Plan(
            self.weight._replace(matrices=NO_MATRICES), torch.empty_like(self.matrices, device="meta"), self.windows
        )


def plan_layer(weight: LayerWeight, method: SpectralMethod) -> Plan | LayerSpectrum:
    """Return the plan of a layer, or the row of one that is skipped."""
    reason = weight.reason or _unusable(weight, method)
    if reason:
        return skipped_row(weight, reason)
    matrices = method.orient(weight.matrices, weight.kind)
    rows, columns = matrices.shape[-2:]
    try:
        plan = Plan(weight, matrices, method.windows(rows, columns, weight.kind))
    except ValueError as error:  # the authors' rule has no answer for this shape
        return skipped_row(weight, str(error))
    least = MIN_EIGENVALUES if method.compat is None else 2
    if plan.eigenvalue_count < least:
        rank = f" (rank {weight.rank})" if plan.spectrum_size < plan.gram_size else ""
        row = skipped_row(
            weight,
            f"it has {counted(plan.eigenvalue_count, 'eigenvalue')}{rank}, fewer than the {least} that a fit takes",
        )
        return replace(row, spectral_norm=0.0) if weight.rank == 0 else row  # known to be zero without measuring it
    return plan


def skipped_row(weight: LayerWeight, reason: str) -> LayerSpectrum:
    """Return the row of a layer without an alpha."""
    return LayerSpectrum(
        weight.name, weight.kind, weight.shape, status=Status.SKIPPED, reason=reason, layout=weight.layout
    )


def _unusable(weight: LayerWeight, method: SpectralMethod) -> str | None:
    if not (weight.matrices.is_floating_point() or weight.matrices.is_complex()):
        return f"the weights are of type {weight.matrices.dtype}, not real or complex numbers"
    if 0 in weight.matrices.shape:
        return "the weight is empty"
    if min(weight.matrices.shape[-2:]) == 1 and method.compat is None:
        return f"the matrix is a vector, {weight.matrices.shape[-2]} x {weight.matrices.shape[-1]}"
    grouped = weight.kind == "convolution" and weight.matrices.shape[-2] != weight.shape[0]
    return method.refusal(weight.kind, len(weight.shape), grouped)
