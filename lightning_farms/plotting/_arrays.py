"""Conversion of the values that the plots accept to NumPy arrays."""

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

Values: TypeAlias = torch.Tensor | NDArray[Any] | Sequence[Any]


def as_array(values: Values, name: str, ndim: int) -> NDArray[np.float64]:
    """Convert numbers to a float64 array on the host without changing the input."""
    if isinstance(values, torch.Tensor):
        array = values.detach().to(device="cpu", dtype=torch.float64).numpy()
    else:
        array = np.asarray(values, dtype=np.float64)
    if array.ndim != ndim:
        raise ValueError(f"Expected argument `{name}` to have {ndim} dimension(s), but got shape {array.shape}.")
    return array


def spans_decades(*arrays: NDArray[np.float64]) -> bool:
    """Whether positive values are so far apart, as with an orthogonal layer's alpha, that they need a logarithm."""
    values = np.concatenate([array.ravel() for array in arrays])
    finite = values[np.isfinite(values)]
    return bool(finite.size and 0 < 10 * finite.min() < finite.max())
