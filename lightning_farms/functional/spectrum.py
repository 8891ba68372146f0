"""Eigenvalues of many equally sized matrices at once, and what follows from them directly."""

from __future__ import annotations

import torch
from torch import Tensor

QUICK_ERROR = 8 * torch.finfo(torch.float32).eps
"""Error of xmin in the quick way, by the root mean square of the eigenvalues (inferred from alphas: up to 5.5 eps)."""

PADDED_TO = 4
"""Rows and columns of the CPU's copies of matrices are multiples of this, see :func:`esd`."""

_BOUNDARY = 64  # bytes, to which torch aligns what it allocates
_GRAM_BLOCK = 128  # rows of a product; of fewer, products are slow


def esd(matrices: Tensor, *, quick: bool = False) -> Tensor:
    r"""Eigenvalues of :math:`W^\dagger W`, the squared singular values, of each matrix.

    The eigenvalues are those of the smaller Gram matrix (:math:`W W^\dagger` or :math:`W^\dagger W`), formed and
    decomposed in float64: their absolute error is about 1e-16 of the largest one, less than that of a float32
    singular value decomposition, and this is faster. Rounding below zero is set to zero. A device without float64
    (MPS) hands the work to the CPU.

    On the CPU the result has the same bits wherever the matrix lies in memory and whichever matrices share the call
    with it, for one number of intra-op threads. (The libraries' rounding depends on addresses, and that of matrices of
    odd size within a batch so on their place in it; each matrix that is not aligned is copied to where it is.)

    Args:
        matrices: (..., m, n), real or complex, finite.
        quick: work in float32, in about half the time; the absolute error is up to about 1e-6 of the root mean square
            eigenvalue in the middle of the spectrum, and of the largest one at its end. Without effect on float64
            input, and where float32 products are allowed to be inexact (TF32, bfloat16).

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
    matrices = matrices.cpu() if matrices.device.type == "mps" else matrices
    wide = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    working_type = _working_type(matrices.dtype, quick)
    copies = _aligned(wide, working_type) if wide.device.type == "cpu" else wide.to(working_type).unsqueeze(0)
    with torch.autocast(wide.device.type, enabled=False):
        eigenvalues: Tensor = torch.linalg.eigvalsh(_upper_gram(copies), UPLO="U")
    return eigenvalues.squeeze(0)[..., -wide.shape[-2] :].to(torch.float64).clamp(min=0.0)


def _aligned(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (1, ..., m', n') that all start, as their Gram matrices will, on a 64-byte boundary (torch's own).

    The zeros that fill them up to multiples of four (m' n' entries, and m' m', are then of 64 bytes and more) change no
    product and add eigenvalues of zero, the smallest there are. The leading dimension makes of a single matrix a batch
    as well: single ones are multiplied by another routine.
    """
    height, width = wide.shape[-2:]
    above, right = -height % PADDED_TO, -width % PADDED_TO
    if not (above or right):
        copies = wide.to(dtype).resolve_conj().resolve_neg().contiguous().unsqueeze(0)
        return copies if copies.data_ptr() % _BOUNDARY == 0 else copies.clone()
    copies = wide.new_zeros(1, *wide.shape[:-2], height + above, width + right, dtype=dtype)
    copies[0, ..., above:, :width] = wide
    return copies


def _upper_gram(wide: Tensor) -> Tensor:
    """The upper triangle of W W^H, by block rows that leave out most of the lower one; what is below is zero."""
    size = wide.shape[-2]
    if size < 2 * _GRAM_BLOCK:
        return wide @ wide.mH
    gram = wide.new_zeros(*wide.shape[:-1], size)
    for start in range(0, size, _GRAM_BLOCK):
        stop = min(start + _GRAM_BLOCK, size)
        gram[..., start:stop, start:] = wide[..., start:stop, :] @ wide[..., start:, :].mH
    return gram


def _working_type(dtype: torch.dtype, quick: bool) -> torch.dtype:
    single = quick and dtype not in (torch.float64, torch.complex128) and _float32_products_are_exact()
    if dtype.is_complex:
        return torch.complex64 if single else torch.complex128
    return torch.float32 if single else torch.float64


def _float32_products_are_exact() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # precision was set by backend: not the default in any case
        return False


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
