"""The spectrum that the decomposition of a layer passes on to be measured."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from lightning_farms.functional.eigensolvers import Way


class Spectrum(NamedTuple):
    """Eigenvalues (blocks, P, k) of a layer, the largest errors of their sums over its windows, and the routine."""

    eigenvalues: Tensor
    sum_error: Tensor
    squares_error: Tensor
    way: Way = Way.CPU
