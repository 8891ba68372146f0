"""Values of types that PyTorch's safe reading of checkpoints (weights_only) takes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from numbers import Integral, Real
from pathlib import PurePath
from typing import Any

from torch import Tensor


def plain(value: object) -> Any:  # noqa: ANN401
    """Return a value in Python's own types: NumPy's numbers, paths, dataclasses, and containers of such values.

    Raises:
        TypeError: for a value that has no such form.

    Example:
        >>> import numpy
        >>> plain({"seeds": (numpy.int64(3), True), "path": PurePath("flow.hdf5")})
        {'seeds': (3, True), 'path': 'flow.hdf5'}
    """
    if value is None or isinstance(value, (bool, Tensor)):
        return value
    if isinstance(value, (str, PurePath)):
        return str(value)
    if isinstance(value, (Integral, Real)):
        return int(value) if isinstance(value, Integral) else float(value)
    if type(value) is list or type(value) is tuple:
        return type(value)(plain(each) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return plain(asdict(value))
    if isinstance(value, Mapping):
        return {plain(key): plain(each) for key, each in value.items()}
    raise TypeError(f"Expected a value that a checkpoint can hold, but got {type(value).__name__}.")


def plain_ones(values: Mapping[str, object]) -> dict[str, Any]:
    """Return those of some values that have a plain form, in this form."""
    found = {}
    for name, value in values.items():
        try:
            found[name] = plain(value)
        except TypeError:
            continue
    return found
