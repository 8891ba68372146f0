"""Gram matrices and their eigenvalues, computed one after another in a work space that fits the cache.

Only one triangle of a Gram matrix is formed; LAPACK reduces it to tridiagonal form and finds eigenvalues only. SciPy's
BLAS and LAPACK are called through function pointers, which let other threads run; SciPy's own wrappers do not.
"""

from __future__ import annotations

import ctypes
import logging
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from ctypes import byref
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_farms.functional._rows import as_real, on_boundary, row_norms
from lightning_farms.functional.submatrices import is_interleaved

DecompositionError = torch.linalg.LinAlgError  # type: ignore[attr-defined]
"""The error that PyTorch raises if a decomposition does not converge."""

_NAMES = {
    torch.float32: ("ssyrk", "ssytrd", "ssterf"),
    torch.float64: ("dsyrk", "dsytrd", "dsterf"),
    torch.complex64: ("cherk", "chetrd", "ssterf"),
    torch.complex128: ("zherk", "zhetrd", "dsterf"),
}
_BLOCK = 16  # columns that are reduced together: 2 to 8 % faster than the 32 that LAPACK takes by itself
_APART = 16  # entries between rows of a Gram matrix: rows of 2^k entries each would compete for the same cache lines
_ROWS = 16  # rows of a convolution's positions that are copied together: some hundred KiB


class _Routines(NamedTuple):
    """The three BLAS and LAPACK routines for one data type, whose arguments are as follows.

    (uplo, trans, n, k, alpha, a, lda, beta, c, ldc), (uplo, n, a, lda, d, e, tau, work, lwork, info), (n, d, e, info).
    """

    multiply: Callable[..., None]
    reduce: Callable[..., None]
    values: Callable[..., None]


class GramSpectra(NamedTuple):
    """Eigenvalues and norms of the Gram matrices of W (b, k, n), in float64.

    Attributes:
        eigenvalues: (b, k), eigenvalues of G = W W^H, ascending.
        norm: (b), the squared Frobenius norm of W.
        gram_norm: (b), the squared Frobenius norm of G divided by that of W; 0 for W = 0.
    """

    eigenvalues: Tensor
    norm: Tensor
    gram_norm: Tensor


@cache
def available() -> bool:
    """Whether SciPy and threadpoolctl are installed, and SciPy's routines take C's ints."""
    try:
        import scipy.linalg.cython_blas
        import scipy.linalg.cython_lapack  # noqa: F401
        import threadpoolctl  # noqa: F401

        return all(_routines(dtype) for dtype in _NAMES)
    except Exception:  # a package is not installed, or does not load
        return False


@cache
def has_numba() -> bool:
    """Whether Numba is installed besides, and compiles :mod:`._tridiagonal` for this processor."""
    numba_log = logging.getLogger("numba")
    if numba_log.level == logging.NOTSET:  # of each step of a compilation it tells at the level DEBUG
        numba_log.setLevel(logging.INFO)
    try:
        return available() and _of_tridiagonals(torch.ones(1, 2), torch.zeros(1, 2), True).tolist() == [[1.0, 1.0]]
    except Exception:  # it is not installed, or does not load
        return False


@cache
def _routines(dtype: torch.dtype) -> _Routines:
    from scipy.linalg import cython_blas, cython_lapack

    multiply, reduce, values = _NAMES[dtype]
    return _Routines(
        _function(cython_blas, multiply, 10), _function(cython_lapack, reduce, 10), _function(cython_lapack, values, 4)
    )


def _function(library: object, name: str, arguments: int) -> Callable[..., None]:
    import scipy

    found = scipy.LowLevelCallable.from_cython(library, name)
    types = found.signature.partition("(")[2].split(",")
    if len(types) != arguments or types[-1].strip() != "int *)":
        raise TypeError(f"SciPy's {name} is of another form: {found.signature}")
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = pointer(found.function, found.signature.encode())
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


def gram_spectra(batches: Sequence[Tensor], dtype: torch.dtype, *, together: bool = False) -> GramSpectra:
    """Compute the Gram spectra of batches of matrices (b, k, n) on the CPU, k <= n, all batches joined into one result.

    The matrices may be of any type; ``dtype`` is the type of the computation. The bits of the result depend on the
    entries alone: every matrix begins at a cache line, or is copied to the same place. The eigenvalues of the
    tridiagonal forms are LAPACK's, one matrix after another, or, with ``together``, those of :mod:`._tridiagonal`.

    Raises:
        ImportError: SciPy or threadpoolctl is not installed, or, with ``together``, Numba.
        torch.linalg.LinAlgError: the iteration did not converge.
    """
    if not available():
        raise ImportError('Eigenvalues by SciPy need the package: pip install "lightning-farms[scipy]"')
    if together and not has_numba():
        raise ImportError('Eigenvalues by Numba need the package: pip install "lightning-farms[numba]"')
    count, (size, length) = sum(map(len, batches)), batches[0].shape[-2:]
    work, results = _work_space(size, length, dtype), torch.empty(4, count, size, dtype=dtype.to_real(), device="cpu")
    diagonals, beside, rows, gram_rows = results
    exponents = torch.zeros(count, dtype=torch.float64, device="cpu")
    places = zip(range(count), gram_rows.unbind(), diagonals.unbind(), beside.unbind(), strict=True)
    for batch, norms in zip(batches, rows.split([len(each) for each in batches]), strict=True):
        matrices = work.gathered(batch) if is_interleaved(batch) else batch
        row_norms(matrices, out=norms)
        for matrix, row, within in zip(matrices.unbind(), norms, _within_limits(norms), strict=True):
            index, gram_row, d, e = next(places)
            given = work.placed(matrix, copied=not within)
            if not within and (exponent := _exponent(given)):
                row_norms(given.mul_(2.0**-exponent), out=row)
                exponents[index] = exponent
            work.multiply(given)
            torch.linalg.vector_norm(work.gram_as_real, dim=-1, out=gram_row)
            work.reduce(d, e)
    eigenvalues = _of_tridiagonals(diagonals, beside, together)
    scale = torch.exp2(2 * exponents)
    squares, triangles = (each.to(torch.float64).square() for each in (rows, gram_rows))
    norm = squares.sum(-1)
    gram_norm = (2 * triangles.sum(-1) - squares.square().sum(-1)) / norm.clamp(min=torch.finfo(torch.float64).tiny)
    return GramSpectra(eigenvalues.to(torch.float64) * scale.unsqueeze(-1), norm * scale, gram_norm * scale)


def _of_tridiagonals(diagonals: Tensor, beside: Tensor, together: bool) -> Tensor:
    """The eigenvalues (b, k) of tridiagonal matrices, ascending; the arguments are overwritten."""
    size = diagonals.shape[-1]
    if together:
        from lightning_farms.functional import _tridiagonal  # needs Numba, whose import takes half a second

        diagonals, converged = _tridiagonal.eigenvalues(diagonals, beside)
    else:
        values, n, info = _routines(diagonals.dtype).values, ctypes.c_int(size), ctypes.c_int(0)
        converged = True
        for d, e in zip(diagonals, beside, strict=True):
            values(byref(n), d.data_ptr(), e.data_ptr(), byref(info))
            converged &= info.value == 0
    if not converged:
        raise DecompositionError(f"The eigenvalues of a matrix of size {size} did not converge.")
    return diagonals


def _within_limits(norms: Tensor) -> list[bool]:
    """Whether squares of a Gram matrix's entries are sure not to over- or underflow, by the limits of LAPACK's drivers.

    False if a norm is not finite.
    """
    limits, largest = torch.finfo(norms.dtype), norms.amax(-1)
    least = (limits.tiny / limits.eps) ** 0.25
    within: list[bool] = ((largest > least) & (largest < 1 / least)).tolist()
    return within


def _exponent(matrix: Tensor) -> int:
    """Power of two to divide a matrix by so that its largest entry is about 1; 0 if it is zero or not finite."""
    largest = matrix.abs().amax().item()
    if largest == 0 or not math.isfinite(largest):
        return 0
    most = int(math.log2(torch.finfo(matrix.dtype).max)) - 1
    return max(-most, min(math.frexp(largest)[1], most))


class _WorkSpace:
    """Memory and arguments for decomposing matrices (k, n) of one size and type, one after another."""

    def __init__(self, size: int, length: int, dtype: torch.dtype) -> None:
        self._routines = _routines(dtype)
        self._copy = torch.empty(size, length, dtype=dtype, device="cpu")
        self._gathered = self._copy.new_empty(0)
        self._scratch = torch.zeros(size + 1 + _BLOCK, size + _APART, dtype=dtype, device="cpu")
        # (k, k): the lower triangle, which LAPACK, counting by columns, takes for the upper one; zeros above it
        self.gram_as_real = as_real(self._scratch[:size, :size])
        number = ctypes.c_double if dtype.to_real() == torch.float64 else ctypes.c_float
        self._numbers = tuple(byref(number(each)) for each in (1, 0))
        self._sizes = tuple(byref(ctypes.c_int(each)) for each in (size, length, size + _APART, _BLOCK * size))
        self._letters = tuple(byref(ctypes.c_char(each)) for each in (b"U", b"C"))
        self._addresses = tuple(self._scratch[row].data_ptr() for row in (0, size, size + 1))
        self._info = ctypes.c_int(0)

    def gathered(self, matrices: Tensor) -> Tensor:
        """Copy interleaved matrices apart, some rows at a time, so that every cache line read is fully used."""
        if len(self._gathered) < len(matrices):
            self._gathered = self._copy.new_empty(matrices.shape)
        apart = self._gathered[: len(matrices)]
        for into, rows in zip(apart.split(_ROWS, 1), matrices.split(_ROWS, 1), strict=True):
            into.copy_(rows)
        return apart

    def placed(self, matrix: Tensor, *, copied: bool) -> Tensor:
        """The matrix itself, or a copy if it is to be changed or if its place in memory could alter products' bits."""
        ready = matrix.dtype == self._copy.dtype and matrix.is_contiguous() and on_boundary(matrix)
        return self._copy.copy_(matrix) if copied or not ready or matrix.is_conj() or matrix.is_neg() else matrix

    def multiply(self, matrix: Tensor) -> None:
        """Form the Gram matrix of a contiguous (k, n) matrix, which BLAS sees as its transpose."""
        (n, length, apart, _), (upper, conjugated), (one, zero) = self._sizes, self._letters, self._numbers
        given, gram = matrix.data_ptr(), self._addresses[0]
        self._routines.multiply(upper, conjugated, n, length, one, given, length, zero, gram, apart)

    def reduce(self, d: Tensor, e: Tensor) -> None:
        """Write the tridiagonal form of the Gram matrix, which is overwritten: its diagonal, the entries beside it."""
        (n, _, apart, free), (matrix, tau, work) = self._sizes, self._addresses
        self._routines.reduce(
            self._letters[0], n, matrix, apart, d.data_ptr(), e.data_ptr(), tau, work, free, byref(self._info)
        )


class _OfThread(threading.local):
    """The work space that a thread used last, kept because the next matrices are mostly of the same size."""

    key: tuple[int, int, torch.dtype] | None = None
    space: _WorkSpace | None = None


_OF_THREAD = _OfThread()


def _work_space(size: int, length: int, dtype: torch.dtype) -> _WorkSpace:
    if _OF_THREAD.space is None or _OF_THREAD.key != (size, length, dtype):
        _OF_THREAD.space = None  # freed first, so that there are never two
        _OF_THREAD.key, _OF_THREAD.space = (size, length, dtype), _WorkSpace(size, length, dtype)
    return _OF_THREAD.space


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limit BLAS to one thread in the whole process, for one caller at a time.

    The caller has to leave the context in the thread in which it entered. On leaving, the thread's work space is freed.
    """
    if not available():
        yield
        return
    try:
        with _controller().limit(limits=1, user_api="blas"):
            yield
    finally:
        _OF_THREAD.space = None


@cache
def _controller() -> Any:  # noqa: ANN401
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()  # controls the libraries that are loaded by now: SciPy's is
