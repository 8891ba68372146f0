"""Complex tensors as tensorly-torch holds them, such as the weights of Fourier layers: as factors, or as real pairs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from string import ascii_lowercase, ascii_uppercase

import torch
from torch import Tensor

from lightning_farms.analysis.weights._matrices import complex_matrices
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor

_PART = re.compile(r"(?P<base>(?:.*\.)?\w*weights?(?:\.\d+)?)\.(?P<part>core|weights|tensor|factors\.factor_\d+)")
_FIRST, _DENSE = "factors.factor_0", "tensor"
_MATRICES = {"core", "weights"}  # with one of these, factors are matrices; a tensor train's have three dimensions


def complex_parts(names: Mapping[str, str], outlines: Mapping[str, Tensor]) -> dict[str, tuple[str, str]]:
    """Return {name of a part: (name of its complex tensor, part)}; parts of real tensors are left out."""
    groups: dict[str, dict[str, str]] = {}
    for name in names:
        if match := _PART.fullmatch(name):
            groups.setdefault(match["base"], {})[match["part"]] = name
    found: dict[str, tuple[str, str]] = {}
    for base, parts in groups.items():
        first = parts.get(_FIRST, parts.get(_DENSE) if len(parts) == 1 else None)
        with suppress(UnreadableTensor):  # which has a row of its own
            outline = None if first is None or base in names else outlines[names[first]]
            if outline is not None and (_are_pairs(outline, parts) or (_FIRST in parts and outline.is_complex())):
                found |= {name: (base, part) for part, name in parts.items()}
    return found


def are_parts(parts: Mapping[str, str]) -> bool:
    """Whether a tensor is held in one of these ways."""
    return _FIRST in parts or _DENSE in parts


def whole_tensor(parts: Mapping[str, Tensor]) -> Tensor:
    """Multiply the factors of a Tucker, CP or tensor-train decomposition, or return the dense tensor itself."""
    pairs = _are_pairs(parts[_FIRST if _FIRST in parts else _DENSE], parts)
    plain = {part: complex_matrices(held.movedim(-1, 0)) if pairs else held for part, held in parts.items()}
    if _DENSE in plain:
        return plain[_DENSE]
    factors = [plain[part] for part in sorted(plain, key=lambda part: (len(part), part)) if part not in _MATRICES]
    letters, ranks = ascii_lowercase[: len(factors)], ascii_uppercase[: len(factors) + 1]
    if "core" in plain:
        terms = [letter + rank for letter, rank in zip(letters, ranks, strict=False)]
        return torch.einsum(f"{ranks[:-1]},{','.join(terms)}->{letters}", plain["core"], *factors)
    if "weights" in plain:
        half = len(factors) // 2  # the product of all factors would be r times as large as the tensor
        left = _rows_times_rows([plain["weights"].unsqueeze(0), *factors[:half]])
        return (left @ _rows_times_rows(factors[half:]).mT).reshape([len(factor) for factor in factors])
    terms = [ranks[index] + letter + ranks[index + 1] for index, letter in enumerate(letters)]
    return torch.einsum(f"{','.join(terms)}->{letters}", *factors)


def _rows_times_rows(factors: list[Tensor]) -> Tensor:
    """Return the Khatri-Rao product of (n_1, r), (n_2, r), ..., of shape (n_1 n_2 ..., r)."""
    whole = factors[0]
    for factor in factors[1:]:
        whole = (whole.unsqueeze(1) * factor).flatten(0, 1)
    return whole


def _are_pairs(first: Tensor, parts: Mapping[str, object]) -> bool:
    """Whether the last dimension, of size 2, holds real and imaginary parts."""
    if first.is_complex() or not first.ndim or first.shape[-1] != 2:
        return False
    dimensions = 3 if _MATRICES & parts.keys() else 4
    return first.ndim >= 4 if _DENSE in parts else first.ndim == dimensions
