"""Which windows a weight is looked at through, or why it is not looked at; index arithmetic only, no values."""

from __future__ import annotations

from typing import NamedTuple

from lightning_farms.analysis.method import SpectralMethod
from lightning_farms.analysis.weights import LayerWeight
from lightning_farms.functional.submatrices import Windows

MIN_EIGENVALUES = 10
"""Fewest eigenvalues that are fitted; a layer with fewer is skipped, and blocks with fewer are pooled."""

_CALL = 1e6  # multiplications that take as long as to call the decomposition of a tiny matrix


class Plan(NamedTuple):
    """How a layer will be analysed.

    Attributes:
        windows: grid of windows on each of its matrices.
        matrices: number P of its matrices.
        rows: rows of each oriented matrix.
        columns: columns of each oriented matrix.
        is_complex: whether the entries are complex.
        rank: of each matrix at most, where that is known to be less than its shape allows.
    """

    windows: Windows
    matrices: int
    rows: int
    columns: int
    is_complex: bool
    rank: int | None = None

    @property
    def gram_size(self) -> int:
        """Rows of the smaller Gram matrix of a window."""
        return min(self.windows.height, self.windows.width)

    @property
    def spectrum_size(self) -> int:
        """Eigenvalues of one window, without those that are zero whatever the entries are."""
        return self.gram_size if self.rank is None else min(self.gram_size, self.rank)

    @property
    def eigenvalue_count(self) -> int:
        """Eigenvalues of all windows of all matrices."""
        return self.windows.number * self.matrices * self.spectrum_size

    @property
    def cost(self) -> float:
        """Multiplications of the Gram matrices and their decompositions, roughly."""
        k, long = self.gram_size, max(self.windows.height, self.windows.width)
        each = (4.0 if self.is_complex else 1.0) * k * k * (long + 4.0 * k) + _CALL
        return self.windows.number * self.matrices * each


def plan_layer(weight: LayerWeight, method: SpectralMethod) -> Plan | str:
    """Plan the analysis of a layer from its shape and type.

    Args:
        weight: the layer; its values are not looked at.
        method: how to analyse.

    Returns:
        The plan, or the reason why there is none.
    """
    reason = weight.reason or _unusable(weight, method)
    if reason:
        return reason
    oriented = method.orient(weight.matrices, weight.kind)
    rows, columns = oriented.shape[-2:]
    try:
        windows = method.windows(rows, columns, weight.kind)
    except ValueError as error:
        return str(error)
    plan = Plan(windows, len(weight.matrices), rows, columns, weight.matrices.is_complex(), weight.rank)
    least = MIN_EIGENVALUES if method.compat is None else 2
    if plan.eigenvalue_count < least:
        return f"{plan.eigenvalue_count} eigenvalues, fewer than the {least} that are fitted"
    return plan


def _unusable(weight: LayerWeight, method: SpectralMethod) -> str | None:
    if not (weight.matrices.is_floating_point() or weight.matrices.is_complex()):
        return f"the weights are of type {weight.matrices.dtype}, not real or complex numbers"
    if 0 in weight.matrices.shape:
        return "the weight is empty"
    if min(weight.matrices.shape[-2:]) == 1 and method.compat is None:
        return f"the matrix is a vector, {weight.matrices.shape[-2]} x {weight.matrices.shape[-1]}"
    grouped = weight.kind == "convolution" and weight.matrices.shape[-2] != weight.shape[0]
    return method.refusal(weight.kind, len(weight.shape), grouped)
