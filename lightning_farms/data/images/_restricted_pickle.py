"""Reading of pickles that hold nothing but dicts, lists, numbers, strings and NumPy arrays of uint8."""

from __future__ import annotations

import io
import pickle
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt


def _latin1(text: str, encoding: str) -> bytes:
    """Stand-in for `codecs.encode`, which Python 3 calls for bytes in pickles of protocol 2, always with latin1."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for an encoding to {encoding!r}, which data of this kind never do")
    return text.encode("latin1")


class _Type:
    """Stand-in for `numpy.dtype`."""

    def __init__(self, name: str | bytes, *_: object) -> None:
        if name not in ("u1", b"u1"):
            raise pickle.UnpicklingError(f"it asks for an array of type {name!r}, not of uint8")

    def __setstate__(self, state: object) -> None:
        """Do nothing: byte order and the like mean nothing for uint8."""


class _Array:
    """Stand-in for an array until the pickle is read."""

    value: npt.NDArray[np.uint8] | None = None

    def __setstate__(self, state: tuple[object, tuple[int, ...], _Type, bool, bytes]) -> None:
        _, shape, kind, by_columns, content = state
        self.value = _from_buffer(content, kind, shape, "F" if by_columns else "C").value


def _from_buffer(content: bytes, kind: _Type, shape: tuple[int, ...], order: Literal["C", "F"]) -> _Array:
    array = _Array()
    array.value = np.frombuffer(content, np.uint8).reshape(shape, order=order)
    return array


def _reconstruct(*_: object) -> _Array:
    return _Array()


# NumPy's own constructors would make arrays of pointers, and types out of range, from whatever bytes they are given.
_ALLOWED: dict[tuple[str, str], Any] = {
    ("_codecs", "encode"): _latin1,
    ("numpy", "dtype"): _Type,
    ("numpy", "ndarray"): _Array,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy.core.numeric", "_frombuffer"): _from_buffer,  # from protocol 5 on
    ("numpy._core.numeric", "_frombuffer"): _from_buffer,
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickler that looks up only the few names that arrays need."""

    def find_class(self, module: str, name: str) -> object:
        """Return the stand-in for the object of this name, new each time because a pickle may set its attributes."""
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which data of this kind never do")
        return partial(_ALLOWED[module, name])


def load_arrays(content: bytes) -> object:
    """Unpickle a dict of lists and arrays, with Python 2's strings as bytes; no code of the pickle's choice is run.

    Example:
        >>> load_arrays(pickle.dumps({"data": np.arange(3, dtype=np.uint8), "labels": [3, 5]}))
        {'data': array([0, 1, 2], dtype=uint8), 'labels': [3, 5]}
    """
    try:
        value: object = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"its pickle cannot be read ({type(error).__name__}: {error})") from error
    if not isinstance(value, dict):
        return value
    return {key: item.value if isinstance(item, _Array) else item for key, item in value.items()}
