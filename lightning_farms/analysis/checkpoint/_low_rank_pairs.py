"""Pairs of factors of low-rank updates (LoRA) among the names of a state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis.checkpoint._effective import StoredTensor

_FIRST = re.compile(r"(?P<module>.+)\.(?P<factor>lora_A|lora_down|lora_embedding_A)(?P<rest>(\.[^.]+)*)")
_SECOND = {"lora_A": "lora_B", "lora_down": "lora_up", "lora_embedding_A": "lora_embedding_B"}


class LowRankPair(NamedTuple):
    """Names of the two factors of an update of a module's weight."""

    module: str
    leaf: str
    first: str
    second: str


def low_rank_pairs(names: Mapping[str, object]) -> dict[str, LowRankPair]:
    """Find the pairs."""
    pairs: dict[str, LowRankPair] = {}
    for name in names:
        if match := _FIRST.fullmatch(name):
            second = f"{match['module']}.{_SECOND[match['factor']]}{match['rest']}"
            if second in names:
                base = "lora_embedding" if "embedding" in match["factor"] else "lora"
                leaf = base + match["rest"].removesuffix(".weight")
                pairs[name] = LowRankPair(match["module"], leaf, name, second)
    return pairs


def low_rank_product(tensors: Mapping[str, StoredTensor], pair: LowRankPair) -> StoredTensor:
    """The product of a pair, without the scale that a state dict does not tell (alpha does not depend on it)."""

    def product() -> Tensor:
        down, up = tensors[pair.first].read(), tensors[pair.second].read()
        dtype = torch.promote_types(down.dtype, torch.float32)
        right = down.to(dtype) if down.ndim == 2 else down.to(dtype).flatten(2).movedim(2, 0)
        matrices: Tensor = up.to(dtype).flatten(1) @ right
        return matrices

    def rank() -> int:
        return tensors[pair.second].read().shape[1]

    return StoredTensor(product, tensors[pair.first].reason or tensors[pair.second].reason, rank)
