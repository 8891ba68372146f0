"""Computes parametrised weights as they take effect, from the tensors that a state dict holds in their place."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis._names import WRAPPERS
from lightning_farms.analysis.checkpoint._tensor_factors import are_parts, complex_parts, whole_tensor
from lightning_farms.analysis.weights._gathered import full_tensor, must_be_gathered
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor
from lightning_farms.common.checkpoints.shapes import MetaTensors

_PARAMETRISED = re.compile(r"(?P<module>(?:.*\.)?)parametrizations\.(?P<name>[^.]+)\.(?P<part>.+)")


class StoredTensor(NamedTuple):
    """A tensor of a checkpoint, or one that is computed from several.

    If it is unpacked from a packed one, ``stands_for`` is the name of the weight that it is, ``up.weight``.
    """

    read: Callable[[], Tensor]
    reason: str = ""
    rank: Callable[[], int] | None = None
    quantised: str = ""
    layout: str = ""
    remark: str = ""
    parameter: bool = False
    steps: Callable[[], Tensor] | None = None
    stands_for: str = ""


def effective_tensors(tensors: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """Return the tensors of a state dict, with those of parametrised weights replaced by the weights in effect.

    weight_norm: :math:`W = g V / |V|`; spectral_norm: :math:`W / (u^T W v)`; pruning: :math:`W M`, in the forms of
    ``torch.nn.utils`` and ``torch.nn.utils.parametrizations``; factors of a complex tensor, in the form of
    tensorly-torch: their product. A state dict does not tell the function of any other parametrisation. The wrappers of
    DDP, FSDP and ``torch.compile`` are left out of the names.
    """
    names = plain_names(list(tensors))
    factors = complex_parts(names, MetaTensors(tensors))
    groups: dict[str, dict[str, str]] = {}
    for name, stored in names.items():
        base, part = factors[name] if name in factors else _split(name, names)
        groups.setdefault(base, {})[part] = stored
    return {base: _effective_or_reason(base, parts, tensors) for base, parts in groups.items()}


def _effective_or_reason(name: str, parts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> StoredTensor:
    """Return the weight or, if the shapes of its parts cannot be read, a tensor whose reading raises the reason."""
    try:
        return _effective(name, parts, tensors)
    except UnreadableTensor:
        return StoredTensor(lambda: tensors[min(parts.values())])


def plain_names(names: list[str]) -> dict[str, str]:
    """Return {name without the parts that wrappers (DDP, FSDP, ``torch.compile``) add: name}."""
    in_ddp = all(name.startswith("module.") for name in names)
    parts = {name: name.removeprefix("module.").split(".") if in_ddp else name.split(".") for name in names}
    plain = {".".join(part for part in parts[name] if part not in WRAPPERS): name for name in names}
    return plain if len(plain) == len(names) else {name: name for name in names}


def _split(name: str, names: Mapping[str, str]) -> tuple[str, str]:
    """Return a weight's name, and the part of it that a tensor is; empty if the tensor is all of it."""
    if match := _PARAMETRISED.fullmatch(name):
        return match["module"] + match["name"], match["part"]
    base, underscore, part = name.rpartition("_")
    normed = {f"{base}_g", f"{base}_v"} <= names.keys()
    masked = f"{base}_orig" in names and (f"{base}_mask" in names or f"{base}_u" in names)
    if underscore and ((normed and part in "gv") or (masked and part in ("orig", "mask", "u", "v"))):
        return base, part
    return name, ""


def _effective(name: str, parts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> StoredTensor:
    outlines = MetaTensors(tensors)

    def read(part: str) -> Tensor:
        tensor = tensors[parts[part]]
        return full_tensor(tensor) if must_be_gathered(tensor) and not tensor.is_meta else tensor

    def outline(part: str) -> Tensor:
        return outlines[parts[part]]

    names = set(parts)
    if names == {""}:
        return StoredTensor(lambda: read(""))
    if are_parts(parts):
        return StoredTensor(lambda: whole_tensor({part: read(part) for part in parts}))
    if names == {"g", "v"}:
        return StoredTensor(lambda: _weight_norm(read("g"), read("v")))
    if names == {"original0", "original1"} and _is_weight_norm(outline("original0"), outline("original1")):
        return StoredTensor(lambda: _weight_norm(read("original0"), read("original1")))
    if names == {"orig", "mask"}:
        return StoredTensor(lambda: read("orig") * read("mask"))
    if names in ({"orig", "u", "v"}, {"original", "0._u", "0._v"}):
        weight, left, right = sorted(names, key=lambda part: (part[:1] != "o", part))
        if _row_dimensions(outline(weight), outline(left), outline(right)):
            return StoredTensor(lambda: _spectral_norm(read(weight), read(left), read(right)))
    stored = next((part for part in ("original", "orig", "original0") if part in parts), min(parts))
    return StoredTensor(
        lambda: read(stored),
        f"`{name}` is parametrised in a way that a state dict does not tell ({', '.join(sorted(parts))}): remove the "
        "parametrisation before saving, or analyse the model",
    )


def _is_weight_norm(magnitude: Tensor, direction: Tensor) -> bool:
    """Whether the first tensor has one number for each slice of the second along some of its dimensions."""
    if magnitude.ndim == 0:
        return True
    pairs = zip(magnitude.shape, direction.shape, strict=False)
    return magnitude.ndim == direction.ndim and all(own in (1, other) for own, other in pairs)


def _weight_norm(magnitude: Tensor, direction: Tensor) -> Tensor:
    normed = [d for d in range(direction.ndim) if magnitude.ndim == 0 or magnitude.shape[d] == 1]
    effective: Tensor = direction * (magnitude / torch.linalg.vector_norm(direction, dim=normed, keepdim=True))
    return effective


def _row_dimensions(weight: Tensor, left: Tensor, right: Tensor) -> list[int]:
    """Dimensions of a weight that spectral_norm may have taken as a matrix's rows; 1 for transposed convolutions."""
    candidates = range(1 if weight.ndim == 2 else min(weight.ndim, 2))
    fits = left.ndim == right.ndim == 1 and weight.numel() == len(left) * len(right)
    return [d for d in candidates if fits and weight.shape[d] == len(left)]


def _spectral_norm(weight: Tensor, left: Tensor, right: Tensor) -> Tensor:
    """Divide W by its norm from power iteration, u'Wv, or by the larger one if two dimensions may be the rows."""
    matrices = (weight.movedim(d, 0).flatten(1) for d in _row_dimensions(weight, left, right))
    effective: Tensor = weight / torch.stack([left @ matrix @ right for matrix in matrices]).max()
    return effective
