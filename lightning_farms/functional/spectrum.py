"""Eigenvalues of many equally sized matrices at once, and quantities that follow from them directly."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_farms.functional import _lapack
from lightning_farms.functional._rows import on_boundary, row_norms
from lightning_farms.functional.eigensolvers import (
    PADDED_TO,
    DecompositionError,
    Way,
    Where,
    gram_eigenvalues,
    problem_of,
    way_of,
)

QUICK_ERROR = 8 * torch.finfo(torch.float32).eps
"""Error of xmin with ``quick``, relative to the eigenvalues' root mean square (inferred from alphas: up to 5.5 eps)."""

CHECK_TOLERANCE = 16.0
"""Relative deviation, in units of eps (sqrt(m) + sqrt(n)), that a check of a spectrum allows for rounding, see
:func:`checked_esd`: at most 1.5 of these units were seen, over sizes, types, scales and kinds of matrices."""

_GRAM_BLOCK = 128  # rows of a product; products of fewer rows are slow


class CheckedSpectrum(NamedTuple):
    r"""Eigenvalues, and how far their sum and the sum of their squares are from the correct values.

    An error is 0 if it is within the tolerance, the relative deviation if it is not, infinite if the eigenvalues are
    not finite, and NaN if it is unknown: the matrix is not finite, or its squares overflow.

    Attributes:
        eigenvalues: (..., k), float64, ascending, in units of the squared weight.
        sum_error: (...), error of the sum, :math:`|\sum_i \lambda_i - \|W\|_F^2| / \|W\|_F^2`.
        squares_error: (...), error of the sum of squares, :math:`|\sum_i \lambda_i^2 - \|G\|_F^2| / \|G\|_F^2`.
    """

    eigenvalues: Tensor
    sum_error: Tensor
    squares_error: Tensor


def esd(matrices: Tensor, *, quick: bool = False, where: Where = "auto") -> Tensor:
    r"""ESD of each matrix: the eigenvalues of :math:`W^\dagger W`, which are the squared singular values.

    The eigenvalues are those of the smaller Gram matrix (:math:`W W^\dagger` or :math:`W^\dagger W`), formed and
    decomposed in float64: their absolute error is about 1e-16 of the largest one, less than that of a float32
    singular value decomposition, and this is faster. Values that rounding makes negative are set to zero. A device
    without float64 (MPS) hands the work to the CPU.

    On the CPU, for a fixed number of intra-op threads, the result has the same bits wherever the matrix lies in memory
    and whichever matrices share the call with it. (The libraries' rounding depends on addresses, and for matrices of
    odd size within a batch therefore on their place in it; a matrix that is not aligned is copied to an aligned place.)

    Every spectrum is checked, see :func:`checked_esd`. If one fails, all are computed again from singular values in
    float64 on the CPU, and a warning says so.

    Args:
        matrices: (..., m, n), real or complex, finite.
        quick: work in float32, in about half the time; the absolute error is up to about 1e-6 of the root mean square
            eigenvalue in the middle of the spectrum, and of the largest one at its end. Without effect on float64
            input, if float32 products are allowed to be inexact (TF32, bfloat16), and if float32 does not hold the
            squares of the entries, see :func:`holds_squares`.
        where: where the Gram matrices of matrices on a device are decomposed: ``"auto"``, as the table decides
            (:data:`lightning_farms.functional.eigensolvers.RULES`); ``"device"``; ``"host"``.

    Returns:
        (..., min(m, n)), float64, ascending, in units of the squared weight.

    Raises:
        ValueError: fewer than two dimensions, an empty matrix, entries whose squares float64 does not hold, or
            ``where`` is out of range.
        TypeError: an integer or boolean tensor.
        torch.linalg.LinAlgError: the decomposition does not converge, or the spectrum fails its check both times.

    Example:
        >>> esd(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
        tensor([4., 9.], dtype=torch.float64)
    """
    matrices = _wide(matrices)
    dtype = working_type(matrices.dtype, quick=quick)
    held = holds_squares(matrices, dtype) if matrices.dtype.to_real() == torch.float64 or quick else None
    if held is not None and not bool(held.all()):
        if dtype.to_real() == torch.float64:
            raise ValueError(
                "Expected argument `matrices` to have entries whose squares float64 holds, but got a matrix with "
                f"{float(_largest(matrices)[~held].amax()):.4g} as the largest. Multiply it by a power of two first; "
                "its eigenvalues are then multiplied by the square of that."
            )
        quick = False
    found = checked_esd(matrices, quick=quick, where=where)
    if not _fails(found):
        return found.eigenvalues
    warnings.warn("Eigenvalues failed a check: computed again in float64 on the CPU.", stacklevel=2)
    again = esd_by_singular_values(matrices)
    if _fails(again):
        raise DecompositionError("The eigenvalues failed a check, also when computed again in float64 on the CPU.")
    return again.eigenvalues.to(found.eigenvalues.device)


def _fails(found: CheckedSpectrum) -> bool:
    return bool(((found.sum_error > 0) | (found.squares_error > 0)).any())


def checked_esd(matrices: Tensor, *, quick: bool = False, where: Where | Way = "auto") -> CheckedSpectrum:
    r"""Compute the spectrum of each matrix like :func:`esd`, and return it with two checks, whether or not they fail.

    Only the decomposition itself waits for the device, once per call.

    The eigenvalues of the smaller Gram matrix :math:`G` add up to its trace, :math:`\|W\|_F^2`, and their squares to
    :math:`\|G\|_F^2`, which cost one pass over W and one over G. Rounding makes them deviate: in the norms' own sums,
    in the products (:math:`\sqrt n`, at random, for n of them) and in the decomposition (:math:`\sqrt m`, as observed).
    The tolerance is :math:`16 \epsilon (\sqrt m + \sqrt n)`, with :math:`\epsilon` of the working type: 6e-14 for a
    64 x 64 matrix in float64, 3e-5 in float32. The sums of two random matrices of that size differ by some 3e-2.
    Squares that underflow are allowed for: each product by the smallest normal number.

    Args:
        matrices: as in :func:`esd`.
        quick: as in :func:`esd`.
        where: as in :func:`esd`, or the method itself.

    Returns:
        The spectra and the errors of their sums.

    Raises:
        ValueError: fewer than two dimensions, an empty matrix, or ``where`` is out of range.
        TypeError: an integer or boolean tensor.
        torch.linalg.LinAlgError: the decomposition does not converge.

    Example:
        >>> found = checked_esd(torch.tensor([[3.0, 0.0], [0.0, 2.0]]))
        >>> found.eigenvalues.tolist(), found.sum_error.item(), found.squares_error.item()
        ([4.0, 9.0], 0.0, 0.0)
    """
    wide = _wide(matrices)
    batch = wide.shape[:-2]
    found = checked_esds([wide.reshape(math.prod(batch), *wide.shape[-2:])], quick=quick, where=where)
    return CheckedSpectrum(*(each.reshape(batch + each.shape[1:]) for each in found))


def checked_esds(batches: Sequence[Tensor], *, quick: bool = False, where: Where | Way = "auto") -> CheckedSpectrum:
    """Compute the spectra of several batches of matrices of one size like :func:`checked_esd`, joined into one result.

    Args:
        batches: (b, m, n) each, at least one; their types may differ in precision up to single.
        quick: as in :func:`esd`.
        where: as in :func:`checked_esd`.

    Returns:
        The spectra and the errors of their sums, in the order of the matrices.

    Raises:
        ValueError: the matrices are empty.
        torch.linalg.LinAlgError: a decomposition does not converge.

    Example:
        >>> checked_esds([torch.eye(2)[None], 3 * torch.eye(2)[None]]).eigenvalues
        tensor([[1., 1.],
                [9., 9.]], dtype=torch.float64)
    """
    wide, dtype = [_wide(each) for each in batches], working_type(batches[0].dtype, quick=quick)
    way = _way(wide, dtype, where)
    if way.by_scipy:
        return _one_by_one(wide, dtype, together=way is Way.NUMBA)
    joined = wide[0] if len(wide) == 1 else torch.cat([promoted(each) for each in wide])
    copies = _aligned(joined, dtype) if joined.device.type == "cpu" else joined.to(dtype)
    with torch.autocast(joined.device.type, enabled=False):
        gram = _upper_gram(copies)
        eigenvalues = gram_eigenvalues(gram, way)[..., -joined.shape[-2] :].to(torch.float64)
        errors = _errors(eigenvalues, copies, gram)
    return CheckedSpectrum(eigenvalues.clamp(min=0.0), *errors)


def _way(wide: Sequence[Tensor], dtype: torch.dtype, where: Where | Way) -> Way:
    if isinstance(where, Way):
        return where
    first, grad = wide[0], torch.is_grad_enabled() and any(each.requires_grad for each in wide)
    return way_of(problem_of(first.device, dtype, first.shape[-2], sum(map(len, wide)), grad=grad), where)


def _one_by_one(batches: Sequence[Tensor], dtype: torch.dtype, *, together: bool) -> CheckedSpectrum:
    eigenvalues, norm, gram_norm = _lapack.gram_spectra(batches, dtype, together=together)
    errors = _errors_of_norms(eigenvalues, norm, gram_norm, batches[0].shape[-2:], dtype)
    return CheckedSpectrum(eigenvalues.clamp(min=0.0), *errors)


def esd_by_singular_values(matrices: Tensor) -> CheckedSpectrum:
    """Compute the spectra by an independent routine: singular values in float64 on the CPU.

    Args:
        matrices: as in :func:`esd`.

    Returns:
        The spectra, on the CPU, and the errors of their sums.

    Raises:
        ValueError: fewer than two dimensions, or an empty matrix.
        TypeError: an integer or boolean tensor.
        torch.linalg.LinAlgError: the decomposition does not converge.

    Example:
        >>> found = esd_by_singular_values(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]))
        >>> [round(value, 9) for value in found.eigenvalues.tolist()]
        [4.0, 9.0]
    """
    wide = _wide(matrices).detach().to("cpu", working_type(matrices.dtype, quick=False))
    with torch.autocast("cpu", enabled=False):
        eigenvalues: Tensor = torch.linalg.svdvals(wide).square().flip(-1)
        errors = _errors(eigenvalues, wide, _upper_gram(wide))
    return CheckedSpectrum(eigenvalues, *errors)


def _errors(eigenvalues: Tensor, wide: Tensor, gram: Tensor) -> tuple[Tensor, Tensor]:
    norm = _squared_norm(wide)
    gram_norm = _squared_gram_norm(gram, norm.clamp(min=_underflow(wide.shape[-2:], wide.dtype)).rsqrt())
    return _errors_of_norms(eigenvalues, norm, gram_norm, wide.shape[-2:], wide.dtype)


def _errors_of_norms(
    eigenvalues: Tensor, norm: Tensor, gram_norm: Tensor, shape: torch.Size, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Errors of the sums: 0 within the tolerance, infinite for NaN, NaN where the squares of W overflow.

    With s = ||W||^2 (or the total loss by underflow, if that is more), lambda / sqrt(s) and G / sqrt(s) are squared, so
    that their squares neither overflow nor underflow where s does not.

    Args:
        eigenvalues: (..., k).
        norm: ||W||^2.
        gram_norm: ||G||^2 / s.
        shape: shape of W.
        dtype: type of the computation.
    """
    height, width = shape
    limits = torch.finfo(dtype)
    underflow = _underflow(shape, dtype)
    tolerance = CHECK_TOLERANCE * limits.eps * (math.sqrt(height) + math.sqrt(width))
    size = norm.clamp(min=underflow)
    missing = 2 * underflow / size
    sum_error = (eigenvalues.sum(-1) - norm).abs() / size - missing

    squares = (eigenvalues * size.rsqrt().unsqueeze(-1)).square().sum(-1)
    deviation = (squares - gram_norm).abs() / torch.maximum(gram_norm, size / height)
    squares_error = deviation - 2 * height * missing

    known = norm < limits.max / 2
    errors = torch.stack((sum_error, squares_error)).nan_to_num(torch.inf, posinf=torch.inf)
    beyond = errors.masked_fill(errors <= tolerance, 0.0).masked_fill(~known, torch.nan)
    return beyond[0], beyond[1]


def _underflow(shape: torch.Size, dtype: torch.dtype) -> float:
    """Most that the squares of a matrix's entries can lose by underflow in all."""
    height, width = shape
    return height * width * torch.finfo(dtype).tiny


def _squared_norm(matrices: Tensor) -> Tensor:
    """Squared Frobenius norms in float64, from row norms in the matrices' own type, so that no matrix is copied."""
    return row_norms(matrices).to(torch.float64).square().sum(-1)


def _squared_gram_norm(upper: Tensor, scale: Tensor) -> Tensor:
    """The same for scaled Gram matrices from :func:`_upper_gram`; entries beside its diagonal blocks count twice."""
    scaled = upper * scale.to(upper.real.dtype)[..., None, None]
    stored = _squared_norm(scaled)
    size = upper.shape[-1]
    if size < 2 * _GRAM_BLOCK:
        return stored
    starts = range(0, size, _GRAM_BLOCK)
    blocks = [_squared_norm(scaled[..., i : i + _GRAM_BLOCK, i : i + _GRAM_BLOCK]) for i in starts]
    return 2 * stored - torch.stack(blocks).sum(0)


def holds_squares(matrices: Tensor, dtype: torch.dtype) -> Tensor:
    r"""Whether a type holds the squares of the entries from which a matrix's spectrum is computed.

    If a is the largest entry, the largest eigenvalue lies between :math:`a^2` and :math:`m n a^2`, which must not
    overflow. The loss of products by underflow, at most m n times the smallest normal number, must not exceed the
    rounding error, :math:`\epsilon a^2`.

    Args:
        matrices: (..., m, n), real or complex.
        dtype: type of the computation.

    Returns:
        (...), boolean; also true for zeros, and for entries that are not finite, which are not judged here.

    Example:
        >>> holds_squares(torch.tensor([[[1.0]], [[0.0]], [[1e-30]], [[1e30]]]), torch.float32)
        tensor([ True,  True, False, False])
    """
    limits, size = torch.finfo(dtype), math.prod(matrices.shape[-2:])
    largest = _largest(matrices)
    beyond = largest.isfinite() & (largest > math.sqrt(limits.max / 2 / size))
    lost = (largest > 0) & (largest < math.sqrt(limits.tiny / limits.eps * size))
    return ~(beyond | lost)


def _largest(matrices: Tensor) -> Tensor:
    """The largest absolute value of each matrix's entries, in their real type, but at least in float32."""
    largest: Tensor = torch.linalg.vector_norm(promoted(matrices).detach(), math.inf, dim=(-2, -1))
    return largest


def _wide(matrices: Tensor) -> Tensor:
    """Check matrices, move them to a device with float64, and transpose those with more rows than columns."""
    if matrices.ndim < 2 or 0 in matrices.shape[-2:]:
        raise ValueError(f"Expected argument `matrices` to be (..., m, n), but got shape {tuple(matrices.shape)}.")
    if not (matrices.is_floating_point() or matrices.is_complex()):
        raise TypeError(f"Expected argument `matrices` to be real or complex, but got {matrices.dtype}.")
    matrices = matrices.cpu() if matrices.device.type == "mps" else matrices
    return matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT


def _aligned(wide: Tensor, dtype: torch.dtype) -> Tensor:
    """Matrices (b, m', n') that all start, as their Gram matrices will, on a 64-byte boundary (torch's own).

    Zeros pad them to multiples of four (m' n' and m' m' entries are then multiples of 64 bytes). The zeros change no
    product, and add eigenvalues of zero, which are the smallest.
    """
    height, width = wide.shape[-2:]
    above, right = -height % PADDED_TO, -width % PADDED_TO
    if not (above or right):
        copies = wide.to(dtype).resolve_conj().resolve_neg().contiguous()
        return copies if on_boundary(copies) else copies.clone()
    copies = wide.new_zeros(len(wide), height + above, width + right, dtype=dtype)
    copies[..., above:, :width] = wide
    return copies


def _upper_gram(wide: Tensor) -> Tensor:
    """The upper triangle of W W^H, in block rows that leave out, as zeros, most of the lower triangle."""
    size = wide.shape[-2]
    if size < 2 * _GRAM_BLOCK:
        return wide @ wide.mH
    gram = wide.new_zeros(*wide.shape[:-1], size)
    for start in range(0, size, _GRAM_BLOCK):
        stop = min(start + _GRAM_BLOCK, size)
        gram[..., start:stop, start:] = wide[..., start:stop, :] @ wide[..., start:, :].mH
    return gram


def working_type(dtype: torch.dtype, *, quick: bool) -> torch.dtype:
    """Data type in which :func:`esd` computes.

    Args:
        dtype: type of the matrices, real or complex.
        quick: as in :func:`esd`.

    Returns:
        Double precision, or single if ``quick`` has an effect; real or complex.

    Example:
        >>> working_type(torch.bfloat16, quick=False), working_type(torch.complex64, quick=True)
        (torch.float64, torch.complex64)
    """
    single = quick and dtype not in (torch.float64, torch.complex128) and _float32_products_are_exact()
    if dtype.is_complex:
        return torch.complex64 if single else torch.complex128
    return torch.float32 if single else torch.float64


def promoted(matrices: Tensor) -> Tensor:
    """Convert half precision and less to float32, so that types can be joined and summed."""
    return matrices.to(promoted_type(matrices.dtype))


def promoted_type(dtype: torch.dtype) -> torch.dtype:
    """The type that :func:`promoted` gives."""
    if dtype in (torch.float64, torch.complex128):
        return dtype
    return torch.complex64 if dtype.is_complex else torch.float32


def _float32_products_are_exact() -> bool:
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # precision was set per backend, so it is not the default in any case
        return False
