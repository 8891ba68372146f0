"""Two-dimensional Fourier transforms for few frequencies, as real matrix products with channels last."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def analyse(field: Tensor, modes: int) -> Tensor:
    r"""Return the first coefficients of the orthonormal real Fourier transform over rows and columns.

    .. math:: z_{kl} = \frac{1}{\sqrt{HW}} \sum_{hw} x_{hw}\, e^{-2\pi i (kh/H + lw/W)}

    It takes two real matrix products, over the columns and then over the rows. On a neural operator's grids (16 x 16)
    that is faster than a fast transform: discarded frequencies are never computed, and channels stay last. Maps (batch,
    height, width, channels) to (batch, real or imaginary, rows, columns, channels), at most `modes` rows and columns.
    """
    batch, height, width, channels = field.shape
    along_rows, along_columns = _row_matrix(height, modes, field), _column_matrix(width, modes, field)
    rows, columns = len(along_rows) // 2, len(along_columns) // 2
    half = torch.matmul(along_columns, field)  # (batch, height, 2 * kept columns, channels)
    full = torch.matmul(along_rows, half.reshape(batch, 2 * height, columns * channels))
    return full.view(batch, 2, rows, columns, channels)


def synthesise(spectrum: Tensor, height: int, width: int) -> Tensor:
    """Return the field with the given first coefficients, all others being zero: the inverse of `analyse`.

    Like every real inverse transform, it takes the frequencies of the other half plane to be the conjugates.
    """
    batch, _, rows, columns, channels = spectrum.shape
    along_rows, along_columns = _row_matrix(height, rows, spectrum), _column_matrix(width, columns, spectrum)
    # a transpose inverts an orthonormal transform; a column that also stands for its conjugate counts twice
    column = torch.arange(columns, device=spectrum.device).repeat(2)
    count = torch.where((column == 0) | (2 * column == width), 1, 2)
    half = torch.matmul(along_rows.t(), spectrum.reshape(batch, 2 * rows, columns * channels))
    return torch.matmul(along_columns.t() * count, half.view(batch, height, 2 * columns, channels))


def _column_matrix(width: int, modes: int, like: Tensor) -> Tensor:
    """Return the matrix (2 * kept, width) that maps real values to all real parts, then all imaginary parts."""
    cosine, sine = _waves(width, min(modes, width // 2 + 1), like)
    return torch.cat((cosine, -sine))


def _row_matrix(height: int, modes: int, like: Tensor) -> Tensor:
    """Return the matrix (2 * kept, 2 * height) that maps (row, real or imaginary) to (real or imaginary, kept row)."""
    cosine, sine = _waves(height, min(modes, height), like)
    return torch.cat((torch.stack((cosine, sine), dim=-1), torch.stack((-sine, cosine), dim=-1))).flatten(1)


def _waves(size: int, kept: int, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return the cosines and sines (kept, size) of the orthonormal transform, exact to the dtype's last digit."""
    precise = torch.float32 if like.device.type == "mps" else torch.float64  # that device has no float64
    position = torch.arange(size, device=like.device)
    turns = (position[:kept, None] * position) % size
    angle = turns.to(precise) * (2.0 * math.pi / size)
    scale = 1.0 / math.sqrt(size)
    return (scale * angle.cos()).to(like.dtype), (scale * angle.sin()).to(like.dtype)
