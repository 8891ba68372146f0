"""Gram matrices and their eigenvalues, one after another in a work space that fits the cache.

Of a Gram matrix one triangle is formed; LAPACK reduces it to tridiagonal form and finds the values only. SciPy's BLAS
and LAPACK are called through function pointers: these let other threads run, which SciPy's own wrappers do not.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from ctypes import byref
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

DecompositionError = torch.linalg.LinAlgError  # type: ignore[attr-defined]
"""What PyTorch raises where a decomposition does not converge."""

_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_NAMES = {
    torch.float32: ("ssyrk", "ssytrd", "ssterf"),
    torch.float64: ("dsyrk", "dsytrd", "dsterf"),
    torch.complex64: ("cherk", "chetrd", "ssterf"),
    torch.complex128: ("zherk", "zhetrd", "dsterf"),
}
_BLOCK = 32  # columns that are reduced together; LAPACK's own choice


class _Routines(NamedTuple):
    """The three of a type.

    (uplo, trans, n, k, alpha, a, lda, beta, c, ldc), (uplo, n, a, lda, d, e, tau, work, lwork, info), (n, d, e, info).
    """

    multiply: Callable[..., None]
    reduce: Callable[..., None]
    values: Callable[..., None]


class GramSpectra(NamedTuple):
    """Of matrices W (b, k, n), in float64.

    Attributes:
        eigenvalues: (b, k), ascending, of G = W W^H.
        norm: (b), the squared Frobenius norm of W.
        gram_norm: (b), that of G, divided by that of W; 0 for W = 0.
    """

    eigenvalues: Tensor
    norm: Tensor
    gram_norm: Tensor


@cache
def available() -> bool:
    """Whether SciPy and threadpoolctl are there, and what SciPy offers takes C's ints."""
    try:
        import scipy.linalg.cython_blas
        import scipy.linalg.cython_lapack  # noqa: F401
        import threadpoolctl  # noqa: F401

        return all(_routines(dtype) for dtype in _NAMES)
    except Exception:  # not there, or one that does not load
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


def gram_spectra(matrices: Tensor, dtype: torch.dtype) -> GramSpectra:
    """Of matrices (b, k, n) on the CPU, k <= n, of any type, worked on in the given one.

    The bits depend on the entries alone: every matrix is copied to the same place.

    Raises:
        ImportError: SciPy or threadpoolctl is not there.
        torch.linalg.LinAlgError: the iteration did not converge.
    """
    if not available():
        raise ImportError('Eigenvalues by SciPy need it: pip install "lightning-farms[scipy]"')
    count, size, length = matrices.shape
    copy, work = torch.empty(size, length, dtype=dtype, device="cpu"), _WorkSpace(size, dtype)
    found, rows, gram_rows, diagonals = torch.empty(4, count, size, dtype=_REAL.get(dtype, dtype), device="cpu")
    exponents = torch.zeros(count, dtype=torch.float64, device="cpu")
    for index, matrix in enumerate(matrices):
        torch.linalg.vector_norm(copy.copy_(matrix), dim=-1, out=rows[index])
        if exponent := _exponent(copy, rows[index]):
            torch.linalg.vector_norm(copy.mul_(2.0**-exponent), dim=-1, out=rows[index])
            exponents[index] = exponent
        work.multiply(copy)
        torch.linalg.vector_norm(work.gram, dim=-1, out=gram_rows[index])
        diagonals[index] = work.gram.diagonal().real
        work.decompose(found[index])
    scale = torch.exp2(2 * exponents)
    norm, triangle, diagonal = (each.to(torch.float64).square().sum(-1) for each in (rows, gram_rows, diagonals))
    gram_norm = (2 * triangle - diagonal) / norm.clamp(min=torch.finfo(torch.float64).tiny)
    return GramSpectra(found.to(torch.float64) * scale.unsqueeze(-1), norm * scale, gram_norm * scale)


def _exponent(matrix: Tensor, rows: Tensor) -> int:
    """Of two, to divide a matrix with rows of these norms by, where squares of G's entries could over- or underflow.

    The limits are those of LAPACK's drivers. It is 0 for zeros, and for what is not finite.
    """
    limits = torch.finfo(matrix.dtype)
    least = (limits.tiny / limits.eps) ** 0.25
    if least < rows.amax().item() < 1 / least:
        return 0
    largest = matrix.abs().amax().item()
    if largest == 0 or not math.isfinite(largest):
        return 0
    most = int(math.log2(limits.max)) - 1
    return max(-most, min(math.frexp(largest)[1], most))


class _WorkSpace:
    """For matrices of one size and type, one after another."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self._routines = _routines(dtype)
        self._scratch = torch.zeros(size + 1 + _BLOCK, size, dtype=dtype, device="cpu")
        self._beside = torch.empty(size, dtype=_REAL.get(dtype, dtype), device="cpu")
        self._number = ctypes.c_double if self._beside.dtype == torch.float64 else ctypes.c_float
        self._size, self._upper = ctypes.c_int(size), ctypes.c_char(b"U")

    @property
    def gram(self) -> Tensor:
        """(k, k): the lower triangle, which is LAPACK's upper one, as it counts by columns; zeros above it."""
        return self._scratch[: -1 - _BLOCK]

    def multiply(self, matrix: Tensor) -> None:
        """Form the Gram matrix of a contiguous (k, n), which for BLAS is its transpose."""
        n, length, conjugated = byref(self._size), byref(ctypes.c_int(matrix.shape[-1])), byref(ctypes.c_char(b"C"))
        one, zero = byref(self._number(1)), byref(self._number(0))
        given, gram = matrix.data_ptr(), self._scratch.data_ptr()
        self._routines.multiply(byref(self._upper), conjugated, n, length, one, given, length, zero, gram, n)

    def decompose(self, values: Tensor) -> None:
        """Write the eigenvalues (k) of the Gram matrix, which is lost."""
        size = self._size.value
        free, info = ctypes.c_int(_BLOCK * size), ctypes.c_int(0)
        matrix, tau, work = (self._scratch[row].data_ptr() for row in (0, size, size + 1))
        n, d, e = byref(self._size), values.data_ptr(), self._beside.data_ptr()
        self._routines.reduce(byref(self._upper), n, matrix, n, d, e, tau, work, byref(free), byref(info))
        self._routines.values(n, d, e, byref(info))
        if info.value:
            raise DecompositionError(f"The eigenvalues of a matrix of size {size} did not converge.")


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One thread for BLAS, in the process: for one caller at a time, which leaves in the thread in which it entered."""
    if not available():
        yield
        return
    with _controller().limit(limits=1, user_api="blas"):
        yield


@cache
def _controller() -> Any:  # noqa: ANN401
    import threadpoolctl

    return threadpoolctl.ThreadpoolController()  # of the libraries that are loaded: SciPy's is
