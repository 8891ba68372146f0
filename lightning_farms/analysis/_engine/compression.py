"""Compression of low-rank matrices, such as products of LoRA pairs, to fewer rows with the same spectra."""

from __future__ import annotations

import torch
from torch import Tensor

_AT_ONCE = 2**22  # entries that are held in float64 at a time


def fewer_rows(matrices: Tensor, size: int) -> Tensor:
    r"""Return matrices with fewer rows whose windows of whole columns have the same nonzero singular values.

    For W, (m, n) of a rank below ``size``, that is :math:`Q^H W`. Q, (m, size), is an orthonormal basis of what
    :math:`W \Omega` spans, where :math:`\Omega` holds normal random numbers, the same every time on a device. Then
    :math:`W = Q Q^H W` up to an error of the order of W's own rounding.

    Args:
        matrices: (P, m, n), real or complex, of any precision.
        size: the rank plus a few rows to spare, so that no direction is nearly missed by chance.

    Returns:
        (P, size, n), in double precision.

    Reference:
        Halko, Martinsson, Tropp, Finding structure with randomness, SIAM Review 2011, algorithm 4.1.
    """
    wide = torch.complex128 if matrices.is_complex() else torch.float64
    columns = matrices.shape[-1]
    generator = torch.Generator(matrices.device).manual_seed(0)
    numbers = torch.randn(columns, size, generator=generator, dtype=torch.float64, device=matrices.device).to(wide)
    step = max(1, _AT_ONCE // (matrices.shape[0] * matrices.shape[1]))
    parts = [slice(start, start + step) for start in range(0, columns, step)]
    spanned = sum(matrices[..., part].to(wide) @ numbers[part] for part in parts)
    basis, _ = torch.linalg.qr(spanned)
    return torch.cat([basis.mH @ matrices[..., part].to(wide) for part in parts], dim=-1)
