"""Layouts: texts such as ``oi``, ``oikk``, ``batch`` or ``oikk/8`` for what a stored weight's dimensions mean."""

from __future__ import annotations

import re
from typing import NamedTuple

import torch
from torch import Tensor

BATCH = "batch"
EMBEDDING = "embedding"
_SYNTAX = re.compile(r"(?P<letters>[oikbc]+)(/(?P<groups>[1-9]\d*))?")
RULE = (
    "`batch` (matrices of the last two dimensions), `embedding`, or a letter for each dimension: o (outputs), i "
    "(inputs), k (kernel positions), b (batch), c (real and imaginary part), as in `oikk`, and /GROUPS of a convolution"
)


class Layout(NamedTuple):
    """The kind and the matrices of a weight, as its layout gives them."""

    kind: str
    matrices: Tensor


def is_layout(text: object) -> bool:
    """Whether a text is a valid layout."""
    if text in (BATCH, EMBEDDING):
        return True
    match = _SYNTAX.fullmatch(text) if isinstance(text, str) else None
    if match is None:
        return False
    counts = [match["letters"].count(letter) for letter in "oic"]
    return counts[:2] == [1, 1] and counts[2] <= 1 and (match["groups"] in (None, "1") or "k" in match["letters"])


def laid_out(weight: Tensor, layout: str) -> Layout:
    """Return the kind of a weight and its matrices (positions, outputs, inputs), as its layout says.

    Raises:
        ValueError: the layout does not fit the weight's dimensions.
    """
    if layout in (BATCH, EMBEDDING):
        if weight.ndim < 2 or (layout == EMBEDDING and weight.ndim != 2):
            raise ValueError(f"the layout {layout!r} does not fit a weight of {weight.ndim} dimensions")
        return Layout("parameter" if layout == BATCH else EMBEDDING, weight.reshape(-1, *weight.shape[-2:]))
    letters, _, groups = layout.partition("/")
    if len(letters) != weight.ndim:
        raise ValueError(f"the layout {layout!r} does not fit a weight of {weight.ndim} dimensions")
    if "c" in letters:
        weight, letters = _complex(weight, letters), letters.replace("c", "")
    return Layout(_kind(letters), _matrices(weight, letters, int(groups or 1)))


def _complex(weight: Tensor, letters: str) -> Tensor:
    axis = letters.index("c")
    if weight.shape[axis] != 2:
        raise ValueError(f"the layout {letters!r} has `c` for a dimension of {weight.shape[axis]}, which should be 2")
    real, imaginary = weight.to(torch.promote_types(weight.dtype, torch.float32)).unbind(axis)
    return torch.complex(real, imaginary)


def _kind(letters: str) -> str:
    """Return the kind of a weight; kernels come last in PyTorch and first in Keras, which tells transposed ones."""
    if "k" not in letters:
        return "parameter" if "b" in letters else "linear"
    order = letters.replace("k", "").replace("b", "")
    kernel_first = letters.startswith("k")
    return "convolution" if (order == "oi") != kernel_first else "transposed convolution"


def _matrices(weight: Tensor, letters: str, groups: int) -> Tensor:
    """Return (groups x positions, outputs, inputs); groups cut the outputs, or a transposed convolution's inputs."""
    if groups > 1:
        first = letters.index("i" if _kind(letters) == "transposed convolution" else "o")
        if weight.shape[first] % groups:
            raise ValueError(f"the layout's {groups} groups do not divide the weight's {weight.shape[first]} channels")
        weight = weight.unflatten(first, (groups, weight.shape[first] // groups))
        letters = letters[:first] + "g" + letters[first:]
    places = [index for index, letter in enumerate(letters) if letter not in "oi"]
    places.sort(key=lambda index: letters[index] != "g")
    moved = weight.permute(*places, letters.index("o"), letters.index("i"))
    return moved.reshape(-1, *moved.shape[-2:])


def usual_layout(kind: str, dimensions: int) -> str:
    """Return the layout that PyTorch's modules use for a kind of weight with this many dimensions."""
    kernel = "k" * (dimensions - 2)
    known = {"convolution": f"oi{kernel}", "transposed convolution": f"io{kernel}", "embedding": EMBEDDING}
    if kind == "low-rank product" or dimensions < 2:
        return ""
    return known.get(kind, "oi" if dimensions == 2 else BATCH)
