"""Eigenvalues of Hermitian matrices by LAPACK's two steps, the reduction to tridiagonal form and its values only.

SciPy's LAPACK is called through its function pointers: they let other threads run, which SciPy's own wrappers do not.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

_REAL = {torch.complex64: torch.float32, torch.complex128: torch.float64}
_NAMES = {
    torch.float32: ("ssytrd", "ssterf"),
    torch.float64: ("dsytrd", "dsterf"),
    torch.complex64: ("chetrd", "ssterf"),
    torch.complex128: ("zhetrd", "dsterf"),
}
_BLOCK = 32  # columns that are reduced together; LAPACK's own choice


class _Routines(NamedTuple):
    """The two of a type: (uplo, n, a, lda, d, e, tau, work, lwork, info) and (n, d, e, info)."""

    reduce: Callable[..., None]
    values: Callable[..., None]


@cache
def available() -> bool:
    """Whether SciPy and threadpoolctl are there, and what SciPy offers takes C's ints."""
    try:
        import scipy.linalg.cython_lapack  # noqa: F401
        import threadpoolctl  # noqa: F401

        return all(_routines(dtype) for dtype in _NAMES)
    except Exception:  # not there, or one that does not load
        return False


@cache
def _routines(dtype: torch.dtype) -> _Routines:
    return _Routines(*(_function(name, arguments) for name, arguments in zip(_NAMES[dtype], (10, 4), strict=True)))


def _function(name: str, arguments: int) -> Callable[..., None]:
    import scipy

    found = scipy.LowLevelCallable.from_cython(scipy.linalg.cython_lapack, name)
    types = found.signature.partition("(")[2].split(",")
    if len(types) != arguments or types[-1].strip() != "int *)":
        raise TypeError(f"SciPy's {name} is of another form: {found.signature}")
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
    address = pointer(found.function, found.signature.encode())
    return ctypes.CFUNCTYPE(None, *[ctypes.c_void_p] * arguments)(address)


def eigenvalues(upper: Tensor) -> Tensor:
    """Of matrices (b, k, k) on the CPU whose upper triangle is read -> (b, k), ascending.

    Raises:
        ArithmeticError: the iteration did not converge.
    """
    size, routines = upper.shape[-1], _routines(upper.dtype)
    found = torch.empty(len(upper), size, dtype=_REAL.get(upper.dtype, upper.dtype), device="cpu")
    beside = torch.empty_like(found[:1])
    scratch = torch.empty(size + 1 + _BLOCK, size, dtype=upper.dtype, device="cpu")
    exponents = _exponents(upper)
    for matrix, exponent, values in zip(upper, exponents, found, strict=True):
        scratch[:size].copy_(matrix.mT)  # LAPACK counts by columns, and its upper triangle is the quicker one
        if exponent:
            scratch[:size].mul_(2.0**-exponent)
        _decompose(routines, scratch, values, beside)
        if exponent:
            values.mul_(2.0**exponent)
    return found


def _decompose(routines: _Routines, scratch: Tensor, values: Tensor, beside: Tensor) -> None:
    """The matrix (k, k) in the first rows of the scratch is lost; one more is for its reflections, the rest is free."""
    rows, columns = scratch.shape
    size, free, info = ctypes.c_int(columns), ctypes.c_int((rows - columns - 1) * columns), ctypes.c_int(0)
    upper, n, status = ctypes.c_char(b"U"), ctypes.addressof(size), ctypes.addressof(info)
    matrix, tau, work = (scratch[row].data_ptr() for row in (0, columns, columns + 1))
    d, e = values.data_ptr(), beside.data_ptr()
    routines.reduce(ctypes.addressof(upper), n, matrix, n, d, e, tau, work, ctypes.addressof(free), status)
    routines.values(n, d, e, status)
    if info.value:
        raise ArithmeticError(f"The eigenvalues of a matrix of size {columns} did not converge.")


def _exponents(upper: Tensor) -> list[int]:
    """Of two, to divide each matrix by: 0 but where products could over- or underflow, as LAPACK's drivers have it.

    No entry of a Gram matrix is larger than the largest on its diagonal.
    """
    limits = torch.finfo(upper.dtype)
    least = math.sqrt(limits.tiny / limits.eps)
    sizes: list[float] = upper.diagonal(dim1=-2, dim2=-1).abs().amax(-1).tolist()
    return [
        0 if size == 0 or least < size < 1 / least or not math.isfinite(size) else math.frexp(size)[1] for size in sizes
    ]


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
