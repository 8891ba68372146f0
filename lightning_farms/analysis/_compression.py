"""Matrices of low rank, as products of LoRA pairs are, in fewer rows or columns and with the same spectra."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_farms.analysis._plan import Plan
from lightning_farms.functional.spectrum import working_type

_AT_ONCE = 2**22  # entries that are held in float64 at a time


def compressed(plan: Plan, *, quick: bool) -> Plan:
    r"""The plan with matrices of fewer rows or columns whose windows have the same eigenvalues.

    Of W, (m, n) of rank r at most, whose windows take all m rows: :math:`Q^H W`, (r + 8, n), where Q is an orthonormal
    basis of the space that :math:`W \Omega` spans, :math:`\Omega` being normal numbers, the same every time. As
    :math:`W = Q Q^H W`, every window of whole columns keeps its singular values but zero ones. All is computed in
    float64; what is lost is of the order of W's own rounding.

    Args:
        plan: of one layer.
        quick: whether float32 is enough for the eigenvalues.

    Returns:
        The same plan where that does not pay: the rank is not known or high, or no side of the matrices is whole in the
        windows.

    Reference:
        Halko, Martinsson, Tropp, Finding structure with randomness, SIAM Review 2011, algorithm 4.1.
    """
    side = plan.compressed_side
    if side is None or plan.matrices.device.type == "mps":  # which has no float64
        return plan
    windows, size = plan.windows, plan.compressed_size
    dtype = working_type(plan.matrices.dtype, quick=quick)
    if side == "rows":
        few = _few_rows(plan.matrices, size).to(dtype)
        return plan._replace(matrices=few, windows=windows._replace(height=size))
    few = _few_rows(plan.matrices.mT, size).to(dtype)
    return plan._replace(matrices=few.mT, windows=windows._replace(width=size))


def _few_rows(matrices: Tensor, size: int) -> Tensor:
    """(P, size, n) of (P, m, n)."""
    wide = torch.complex128 if matrices.is_complex() else torch.float64
    columns = matrices.shape[-1]
    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(columns, size, generator=generator, dtype=torch.float64).to(matrices.device, wide)
    step = max(1, _AT_ONCE // (matrices.shape[0] * matrices.shape[1]))
    parts = [slice(start, start + step) for start in range(0, columns, step)]
    spanned = sum(matrices[..., part].to(wide) @ numbers[part] for part in parts)
    basis, _ = torch.linalg.qr(spanned)
    return torch.cat([basis.mH @ matrices[..., part].to(wide) for part in parts], dim=-1)
