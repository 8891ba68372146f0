"""Reading of pickles that hold nothing but dicts, lists, numbers, strings and NumPy arrays of numbers."""

from __future__ import annotations

import io
import pickle

import numpy as np


def _latin1(text: str, encoding: str) -> bytes:
    """What Python 3 calls for bytes in pickles of protocol 2: `codecs.encode`, for the one encoding that it uses."""
    if encoding != "latin1":
        raise pickle.UnpicklingError(f"it asks for an encoding to {encoding!r}, which data of this kind never do")
    return text.encode("latin1")


_RECONSTRUCT = np.zeros(0).__reduce__()[0]  # what arrays are pickled with, under either of its names
_FROM_BUFFER = np.zeros(0).__reduce_ex__(5)[0]  # and from protocol 5 on
_ALLOWED = {
    ("_codecs", "encode"): _latin1,
    ("numpy.core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy._core.numeric", "_frombuffer"): _FROM_BUFFER,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
}


class _ArraysOnly(pickle.Unpickler):
    """Unpickler that looks up no names but the few that arrays need."""

    def find_class(self, module: str, name: str) -> object:
        """The object of this name, if it is allowed.

        Args:
            module: where it is.
            name: its own.

        Returns:
            The object.

        Raises:
            pickle.UnpicklingError: it is not allowed; nothing was imported.
        """
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which data of this kind never do")
        return _ALLOWED[module, name]


def load_arrays(content: bytes) -> object:
    """Unpickle dicts, lists and arrays, Python 2's strings as bytes; no code of the pickle's choice is run.

    Args:
        content: of the file.

    Returns:
        What was pickled.

    Raises:
        ValueError: the content is damaged, cut short, no pickle, or asks for anything but arrays.

    Example:
        >>> load_arrays(pickle.dumps({"labels": [3, 5]}, protocol=2))
        {'labels': [3, 5]}
    """
    try:
        value: object = _ArraysOnly(io.BytesIO(content), encoding="bytes").load()
    except Exception as error:  # a damaged pickle can fail in any way
        raise ValueError(f"its pickle cannot be read ({type(error).__name__}: {error})") from error
    return value
