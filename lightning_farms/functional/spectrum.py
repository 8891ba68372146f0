"""Eigenvalues of many equally sized matrices at once, and what follows from them directly."""

from __future__ import annotations

import torch
from torch import Tensor


def esd(matrices: Tensor) -> Tensor:
    r"""Eigenvalues of :math:`W^\dagger W`, the squared singular values, of each matrix.

    The eigenvalues are those of the smaller Gram matrix (:math:`W W^\dagger` or :math:`W^\dagger W`), formed and
    decomposed in float64: their absolute error is about 1e-16 of the largest one, less than that of a float32
    singular value decomposition, and this is faster. Rounding below zero is set to zero. A device without float64
    (MPS) hands the work to the CPU.

    Args:
        matrices: (..., m, n), real or complex, finite.

    Returns:
        (..., min(m, n)), float64, ascending, in units of the squared weight.

    Raises:
        ValueError: fewer than two dimensions, or an empty matrix.
        TypeError: an integer or boolean tensor.

    Example:
        >>> esd(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
        tensor([4., 9.], dtype=torch.float64)
    """
    if matrices.ndim < 2 or 0 in matrices.shape[-2:]:
        raise ValueError(f"Expected argument `matrices` to be (..., m, n), but got shape {tuple(matrices.shape)}.")
    if not (matrices.is_floating_point() or matrices.is_complex()):
        raise TypeError(f"Expected argument `matrices` to be real or complex, but got {matrices.dtype}.")
    wide = _to_double(matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT)
    eigenvalues: Tensor = torch.linalg.eigvalsh(wide @ wide.mH)
    return eigenvalues.clamp_(min=0.0)


def _to_double(matrices: Tensor) -> Tensor:
    matrices = matrices.cpu() if matrices.device.type == "mps" else matrices
    return matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)


def stable_rank(eigenvalues: Tensor) -> Tensor:
    r"""Stable rank :math:`\sum_i \lambda_i / \max_i \lambda_i = \|W\|_F^2 / \|W\|_2^2` of a spectrum.

    Args:
        eigenvalues: (..., N), not negative, in units of the squared weight.

    Returns:
        (...), between 1 and N; NaN where all eigenvalues are zero.

    Raises:
        ValueError: no eigenvalues.

    Example:
        >>> stable_rank(torch.tensor([1.0, 1.0, 2.0]))
        tensor(2.)
    """
    if eigenvalues.ndim < 1 or eigenvalues.shape[-1] == 0:
        raise ValueError(
            f"Expected argument `eigenvalues` to be (..., N) with N >= 1, but got shape {tuple(eigenvalues.shape)}."
        )
    return eigenvalues.sum(-1) / eigenvalues.amax(-1)
