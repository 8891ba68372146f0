"""Eigenvalues of many symmetric tridiagonal matrices of one size at once, by a program that Numba compiles.

LAPACK's routine (xSTERF) takes one matrix: each of its steps waits for the step before, while the processor idles. Here
:data:`LANES` matrices, the lanes, take every step together, by vector instructions. A lane has the bits that it would
have alone: nothing but sums, products, quotients and roots is taken, and each of them is rounded by itself.

The method is LAPACK's: QL iteration without roots and with implicit shifts, by Pal, Walker and Kahan (Parlett, The
Symmetric Eigenvalue Problem, section 8.15). The rows are split into blocks where the entry e between the diagonal
entries d and d' is negligible, e^2 <= (eps / 2)^2 |d d'|. A sweep goes through a block from its last row to its first,
after which the first off-diagonal entry is smaller; once it is negligible, the first diagonal entry is an eigenvalue.
"""

import math
from typing import Any

import numpy as np
import torch
from numba import config, njit
from numpy.typing import NDArray
from torch import Tensor

if getattr(config, "DISABLE_JIT", False):
    raise ImportError("Numba is told not to compile (NUMBA_DISABLE_JIT), and Python would take minutes.")

LANES = 16

_Numbers = NDArray[Any]

_MOST_SWEEPS = 30  # an eigenvalue, as in LAPACK; 1.3 in single and 1.6 in double precision are usual

# Each row has eight fields, which hold a number for every lane. The fields from the sine on are what a sweep that has
# come to a row brings from the row after it: so a step reads and writes at constant distances, and at unsigned indices,
# without which LLVM takes no vector instructions.
_ROW = np.uint64(8 * LANES)
_DIAGONAL, _SQUARE, _SINE, _COSINE, _GAMMA, _P, _SHIFT, _NEGLIGIBLE = (np.uint64(each * LANES) for each in range(8))

_compiled = njit(nogil=True, cache=True, error_model="numpy")  # x / 0 is infinite, as in NumPy


def eigenvalues(diagonals: Tensor, beside: Tensor) -> tuple[Tensor, bool]:
    """Compute the eigenvalues of b symmetric tridiagonal matrices.

    Args:
        diagonals: (b, n), in single or double precision, contiguous, on the CPU.
        beside: (b, n), likewise: the entries beside the diagonal; the last column is not read.

    Returns:
        The eigenvalues (b, n), ascending, and whether all have converged. Those of a matrix that is not finite are not
        all finite.
    """
    given, others = diagonals.numpy(), beside.numpy()
    found, converged = np.empty_like(given), True
    rows = np.zeros((given.shape[1] + 1) * int(_ROW), given.dtype)
    unit = np.finfo(given.dtype).eps / 2
    for first in range(0, len(given), LANES):
        lanes = slice(first, first + LANES)
        converged &= _iterate(given[lanes], others[lanes], found[lanes], rows, given.dtype.type(unit**2))
    found.sort(axis=-1)
    return torch.from_numpy(found), converged


@_compiled
def _at(row: int, lane: int) -> np.uint64:
    return np.uint64(row) * _ROW + np.uint64(lane)


@_compiled
def _load(diagonal: _Numbers, beside: _Numbers, rows: _Numbers, lane: int) -> float:
    """Fill a lane with a matrix, scaled by a power of two so that its squares do not overflow; return the scale.

    If its last entry is smaller than its first, the matrix is reversed, for the sake of graded ones. In place of a
    matrix that is not finite there are zeros, with a scale of NaN.
    """
    size, largest, finite = len(diagonal), 0.0, True
    for row in range(size):
        d, e = abs(diagonal[row]), abs(beside[row]) if row < size - 1 else 0.0
        finite &= d < math.inf and e < math.inf
        largest = max(largest, d, e)
    scale = math.ldexp(1.0, math.frexp(largest)[1] - 1) if finite and largest > 0 else 1.0
    reverse = abs(diagonal[size - 1]) < abs(diagonal[0])
    for row in range(size):
        d = diagonal[size - 1 - row if reverse else row] if finite else 0.0
        e = beside[size - 2 - row if reverse else row] if finite and row < size - 1 else 0.0
        at = _at(row, lane)
        rows[at + _DIAGONAL], rows[at + _SQUARE] = d / scale, (e / scale) ** 2
    return scale if finite else math.nan


@_compiled
def _is_split(rows: _Numbers, row: int, lane: int, negligible: float) -> bool:
    """Whether the entry between a row and the next is negligible; also if it is not a number, so that all loops end."""
    at = _at(row, lane)
    return not rows[at + _SQUARE] > negligible * abs(rows[at + _DIAGONAL] * rows[at + _ROW + _DIAGONAL])


@_compiled
def _next_block(rows: _Numbers, last: int, lane: int, size: int, negligible: float) -> tuple[int, int]:
    """Return the first and last row of the lane's next block of two rows or more, or the size if there is none."""
    first = last
    while first == last and first < size:
        first = last = last + 1
        while last < size - 1 and not _is_split(rows, last, lane, negligible):
            last += 1
    if first < size:
        rows[_at(last, lane) + _SQUARE] = 0.0
    return first, last


@_compiled
def _begin(rows: _Numbers, first: int, last: int, lane: int) -> None:
    """Take Wilkinson's shift from the block's first two rows, and begin a sweep at its last row."""
    one, at = rows.dtype.type(1), _at(first, lane)
    diagonal, beside = rows[at + _DIAGONAL], np.sqrt(rows[at + _SQUARE])
    slope = (rows[at + _ROW + _DIAGONAL] - diagonal) / (beside + beside)
    root = np.sqrt(slope * slope + one)
    shift = diagonal - beside / (slope + (root if slope >= 0 else -root))
    at = _at(last, lane)
    gamma = rows[at + _DIAGONAL] - shift
    rows[at + _SINE], rows[at + _COSINE], rows[at + _GAMMA] = 0.0, 1.0, gamma
    rows[at + _P], rows[at + _SHIFT], rows[at + _NEGLIGIBLE] = gamma * gamma, shift, last


@_compiled
def _sweep(rows: _Numbers, start: int, stop: int, lane: int, end: int, negligible: float) -> None:
    """Take the sweeps of some lanes, lane to end, from row ``start`` on to row ``stop``, which comes before it."""
    zero = rows.dtype.type(0)
    while start > stop:
        after, start = rows.dtype.type(start), start - 1
        for each in range(lane, end):
            at = _at(start, each)
            then = at + _ROW
            diagonal, square, next_diagonal = rows[at + _DIAGONAL], rows[at + _SQUARE], rows[then + _ROW + _DIAGONAL]
            sine, cosine, gamma = rows[then + _SINE], rows[then + _COSINE], rows[then + _GAMMA]
            p, shift, last = rows[then + _P], rows[then + _SHIFT], rows[then + _NEGLIGIBLE]
            total = p + square
            new_square = sine * total
            new_sine, new_cosine = square / total, p / total
            new_gamma = new_cosine * (diagonal - shift) - new_sine * gamma
            new_diagonal = gamma + (diagonal - new_gamma)
            usual, otherwise = new_gamma * new_gamma / new_cosine, cosine * square
            limit = negligible * abs(new_diagonal * next_diagonal)
            rows[then + _DIAGONAL], rows[then + _SQUARE] = new_diagonal, new_square
            rows[at + _SINE], rows[at + _COSINE], rows[at + _GAMMA] = new_sine, new_cosine, new_gamma
            rows[at + _P], rows[at + _SHIFT] = usual if new_cosine != zero else otherwise, shift
            rows[at + _NEGLIGIBLE] = last if new_square > limit else after


@_compiled
def _end(rows: _Numbers, first: int, lane: int, negligible: float) -> tuple[int, int]:
    """Write the first row at the end of a sweep, and return the first and last row of the block that is left."""
    at = _at(first, lane)
    rows[at + _SQUARE] = rows[at + _SINE] * rows[at + _P]
    rows[at + _DIAGONAL] = rows[at + _SHIFT] + rows[at + _GAMMA]
    last = int(rows[at + _NEGLIGIBLE])
    return first + 1 if _is_split(rows, first, lane, negligible) else first, last


@_compiled
def _begin_next(
    rows: _Numbers, found: _Numbers, scale: float, first: int, last: int, lane: int, negligible: float
) -> tuple[int, int]:
    """Begin a lane's next sweep, or write its eigenvalues if it is done; return the first and last row of its block."""
    size = found.shape[1]
    if first == last < size:
        first, last = _next_block(rows, last, lane, size, negligible)
        if first == size:
            for row in range(size):
                found[lane, row] = rows[_at(row, lane) + _DIAGONAL] * scale
    if first < size:
        _begin(rows, first, last, lane)
    return first, last


@_compiled
def _sweep_all(rows: _Numbers, firsts: _Numbers, lasts: _Numbers, size: int, negligible: float) -> None:
    """Take the sweeps of all lanes from the last to the first rows of their blocks, together as far as they overlap."""
    lanes, highest, lowest = len(firsts), size, 0
    for lane in range(lanes):
        if firsts[lane] < size:
            highest, lowest = min(highest, lasts[lane]), max(lowest, firsts[lane])
    highest = max(highest, lowest)
    for lane in range(lanes):
        if firsts[lane] < size:
            _sweep(rows, lasts[lane], highest, lane, lane + 1, negligible)
    _sweep(rows, highest, lowest, 0, lanes, negligible)  # lanes that are done come along
    for lane in range(lanes):
        if firsts[lane] < size:
            _sweep(rows, min(lasts[lane], lowest), firsts[lane], lane, lane + 1, negligible)


@_compiled
def _iterate(diagonals: _Numbers, beside: _Numbers, found: _Numbers, rows: _Numbers, negligible: float) -> bool:
    """Write the eigenvalues of at most as many matrices as there are lanes, in any order; whether all converged."""
    lanes, size = diagonals.shape
    firsts, lasts = np.full(lanes, -1), np.full(lanes, -1)  # rows of the block at which each lane is
    scales = np.empty(lanes)
    for lane in range(lanes):
        scales[lane] = _load(diagonals[lane], beside[lane], rows, lane)
    for _ in range(_MOST_SWEEPS * size):
        for lane in range(lanes):
            firsts[lane], lasts[lane] = _begin_next(
                rows, found, scales[lane], firsts[lane], lasts[lane], lane, negligible
            )
        if firsts.min() == size:
            return True
        _sweep_all(rows, firsts, lasts, size, negligible)
        for lane in range(lanes):
            if firsts[lane] < size:
                firsts[lane], lasts[lane] = _end(rows, firsts[lane], lane, negligible)
    return False
