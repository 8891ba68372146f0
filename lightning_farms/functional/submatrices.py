"""Placement of windows on a matrix (index arithmetic), and the slicing itself."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor


class Windows(NamedTuple):
    """A grid of equally sized windows of a matrix.

    Attributes:
        height: rows of a window, m'.
        width: columns of a window, n'.
        row_starts: first row of each window, ascending.
        column_starts: first column of each window, ascending.
        shrunk: whether a requested window was larger than the matrix and was shrunk to fit.
    """

    height: int
    width: int
    row_starts: tuple[int, ...]
    column_starts: tuple[int, ...]
    shrunk: bool = False

    @property
    def number(self) -> int:
        """Number of windows."""
        return len(self.row_starts) * len(self.column_starts)

    @property
    def aspect_ratio(self) -> float:
        """Realised aspect ratio n'/m'."""
        return self.width / self.height

    def coverage(self, rows: int, columns: int) -> float:
        """Fraction of the entries of an m x n matrix that lie in at least one window.

        Args:
            rows: m.
            columns: n.

        Returns:
            A number in (0, 1].

        Example:
            >>> Windows(4, 4, (0, 4), (0,)).coverage(10, 4)
            0.8
        """
        return _covered(self.row_starts, self.height) / rows * _covered(self.column_starts, self.width) / columns


def _covered(starts: tuple[int, ...], size: int) -> int:
    """Number of positions in the union of windows with ascending starts."""
    return size + sum(min(size, after - before) for before, after in pairwise(starts))


def window_grid(
    rows: int, columns: int, aspect_ratio: float = 1.0, window: int | None = None, steps: int | None = None
) -> Windows:
    r"""Place windows of a fixed aspect ratio :math:`Q = n'/m'` on a matrix so that they cover it.

    Without ``window``, the windows are the largest that fit into a square of the smaller dimension ``s``:
    ``s x round(s Q)`` for Q <= 1 and ``round(s / Q) x s`` for Q > 1 (at least 1 x 1). A window that is larger than
    the matrix is shrunk with its ratio kept. Along a dimension of ``size`` entries, ``count`` windows start at
    ``round(i (size - window) / (count - 1))``, so the first and the last window are flush with the edges. Without
    ``steps``, the count is ``ceil(size / window)``, the fewest that cover every row and column.

    Args:
        rows: number of rows m of the matrix, at least 1.
        columns: number of columns n of the matrix, at least 1.
        aspect_ratio: Q = n'/m', positive.
        window: rows m' of a window, at least 1; ``None`` for the largest that fits the smaller dimension.
        steps: windows per dimension, at least 1; ``None`` for tiles that cover the matrix.

    Returns:
        The grid of windows.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> window_grid(512, 100)
        Windows(height=100, width=100, row_starts=(0, 82, 165, 247, 330, 412), column_starts=(0,), shrunk=False)
        >>> window_grid(64, 48, aspect_ratio=2.0, window=100).shrunk
        True

    Reference:
        Hu et al., Eigenspectrum Analysis of Neural Networks without Aspect Ratio Bias, ICML 2025, Section 3.3.
    """
    check_window_arguments(aspect_ratio, window, steps)
    if rows < 1 or columns < 1:
        raise ValueError(f"Expected a matrix of at least 1 x 1, but got {rows} x {columns}.")
    height, width, shrunk = _window_size(rows, columns, aspect_ratio, window)
    return Windows(height, width, _starts(rows, height, steps), _starts(columns, width, steps), shrunk)


def check_window_arguments(aspect_ratio: float, window: int | None, steps: int | None) -> None:
    """Raise a ValueError for a ratio, window or step count that is out of range."""
    if not (math.isfinite(aspect_ratio) and aspect_ratio > 0):
        raise ValueError(f"Expected argument `aspect_ratio` to be a positive number, but got {aspect_ratio}.")
    for name, value in (("window", window), ("steps", steps)):
        if value is not None and (not isinstance(value, int) or value < 1):
            raise ValueError(f"Expected argument `{name}` to be None or a positive integer, but got {value!r}.")


def _window_size(rows: int, columns: int, aspect_ratio: float, window: int | None) -> tuple[int, int, bool]:
    if window is None:
        smaller = min(rows, columns)
        height, width = (smaller, smaller * aspect_ratio) if aspect_ratio <= 1 else (smaller / aspect_ratio, smaller)
        return max(1, round(height)), max(1, round(width)), False
    width = window * aspect_ratio
    if window <= rows and round(width) <= columns:
        return window, max(1, round(width)), False
    fit = min(rows / window, columns / width)
    return max(1, round(window * fit)), max(1, round(width * fit)), True


def _starts(size: int, window: int, steps: int | None) -> tuple[int, ...]:
    slack = size - window
    count = math.ceil(size / window) if steps is None else min(steps, slack + 1)
    if count == 1:
        return (0,)
    return tuple(round(i * slack / (count - 1)) for i in range(count))


def official_linear_windows(rows: int, columns: int, aspect_ratio: float, window: int, steps: int) -> Windows:
    """Windows of the authors' programs for a linear layer: ``window x int(window Q)``, integer steps.

    A window that does not fit is clamped to ``s x int(s Q)``, s being the smaller dimension, as in their program for
    language models (their program for images would cut other slices than intended). A window that fits is the same in
    both programs for Q = 1; otherwise the one of the program for images is used. Along each dimension, at most
    ``steps`` windows start at ``min(i step, size - window)`` with ``step = max(1, (size - window) // (steps - 1))``;
    rows and columns after the last window are not covered.

    Args:
        rows: number of rows of the weight as stored (out_features).
        columns: number of columns of the weight as stored (in_features).
        aspect_ratio: ``Q_ratio`` in their programs.
        window: ``num_row_samples`` in their programs.
        steps: ``sampling_ops_per_dim`` in their programs.

    Returns:
        The grid of windows.

    Raises:
        ValueError: the clamped window is still wider than the matrix, as may happen for Q > 1 (the authors' slices
            are then silently wrong), or it has no column.

    Example:
        >>> official_linear_windows(32, 64, 1.0, 48, 3)
        Windows(height=32, width=32, row_starts=(0,), column_starts=(0, 16, 32), shrunk=True)
    """
    check_window_arguments(aspect_ratio, window, steps)
    fits = window <= rows and int(window * aspect_ratio) <= columns
    height = window if fits else min(window, rows, columns)
    width = int(height * aspect_ratio)
    if not 1 <= width <= columns:
        raise ValueError(
            f'compat="official" cannot place a {height} x {width} window on a {rows} x {columns} matrix; '
            "use a smaller `window`, or compat=None, which shrinks it with the ratio kept."
        )
    row_starts, column_starts = _official_starts(rows, height, steps), _official_starts(columns, width, steps)
    return Windows(height, width, row_starts, column_starts, shrunk=height < window)


def _official_starts(size: int, window: int, steps: int) -> tuple[int, ...]:
    slack = size - window
    step = max(1, slack // (steps - 1)) if steps > 1 else max(1, slack)
    count = min(steps, max(1, slack // step + 1))
    return tuple(min(i * step, slack) for i in range(count))


def official_convolution_windows(rows: int, columns: int, aspect_ratio: float) -> Windows:
    """Windows of the authors' program for one kernel position: floor(rows / columns) blocks, the rest dropped.

    For Q <= 1 a block has ``columns`` rows and ``floor(columns // (1/Q))`` columns; for Q > 1 it has
    ``floor(columns // Q)`` rows (at least 1) and ``columns`` columns.

    Args:
        rows: the larger dimension of the kernel position (transposed if necessary).
        columns: the smaller dimension.
        aspect_ratio: ``Q_ratio`` in their program.

    Returns:
        The grid of windows, one column of blocks.

    Raises:
        ValueError: ``rows`` is smaller than ``columns``, or the ratio leaves no column.
    """
    check_window_arguments(aspect_ratio, None, None)
    if rows < columns:
        raise ValueError(f"Expected argument `rows` to be at least `columns`, but got {rows} < {columns}.")
    if aspect_ratio <= 1:
        height, width = columns, int(columns // (1 / aspect_ratio))
    else:
        height, width = max(1, int(columns // aspect_ratio)), columns
    if width < 1:
        raise ValueError(f"Expected argument `aspect_ratio` to leave a column of {columns}, but got {aspect_ratio}.")
    return Windows(height, width, tuple(i * height for i in range(rows // columns)), (0,))


def slice_windows(matrix: Tensor, windows: Windows) -> Tensor:
    """Cut the windows out of one or many equally sized matrices.

    Args:
        matrix: (..., m, n).
        windows: a grid made for m x n.

    Returns:
        (..., windows, m', n'), a copy; row starts vary slowest.
    """
    slices = [
        matrix[..., r : r + windows.height, c : c + windows.width]
        for r in windows.row_starts
        for c in windows.column_starts
    ]
    return torch.stack(slices, dim=-3)


def fixed_aspect_ratio_submatrices(
    matrix: Tensor, aspect_ratio: float = 1.0, window: int | None = None, steps: int | None = None
) -> Tensor:
    r"""Cut a matrix into FARMS windows :math:`W_i \in R^{m' \times n'}` of one aspect ratio :math:`Q = n'/m'`.

    Args:
        matrix: (..., m, n); leading dimensions hold further matrices of the same size.
        aspect_ratio: Q = n'/m', positive.
        window: rows m' of a window; ``None`` for the largest that fits the smaller dimension.
        steps: windows per dimension; ``None`` for tiles that cover every row and column.

    Returns:
        (..., windows, m', n'), a copy.

    Raises:
        ValueError: the matrix has fewer than two dimensions, or an argument is out of range.

    Example:
        >>> fixed_aspect_ratio_submatrices(torch.zeros(512, 100)).shape
        torch.Size([6, 100, 100])

    Reference:
        Hu et al., ICML 2025, Section 3.3 and Figure 1.
    """
    if matrix.ndim < 2:
        raise ValueError(f"Expected argument `matrix` to have at least 2 dimensions, but got {matrix.ndim}.")
    return slice_windows(matrix, window_grid(matrix.shape[-2], matrix.shape[-1], aspect_ratio, window, steps))


def is_interleaved(matrices: Tensor) -> bool:
    """Whether several matrices are interleaved in memory, as those of a convolution's kernel positions are.

    Args:
        matrices: (..., m, n).

    Returns:
        Whether neither the entries of a row nor those of a column lie side by side.

    Example:
        >>> kernel = torch.zeros(8, 8, 3, 3)
        >>> is_interleaved(kernel.permute(2, 3, 0, 1)), is_interleaved(kernel)
        (True, False)
    """
    return 1 not in matrices.stride()[-2:]
