"""Pairs of factors of low-rank updates (LoRA) among the names of a state dict."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lightning_farms.analysis.checkpoint._effective import StoredTensor
from lightning_farms.analysis.weights._products import RESCALED, low_rank_matrices, sizes_in, with_core

_FIRST = re.compile(r"(?P<module>.+)\.(?P<factor>lora_A|lora_down|lora_embedding_A)(?P<rest>(\.[^.]+)*)")
_SECOND = {"lora_A": "lora_B", "lora_down": "lora_up", "lora_embedding_A": "lora_embedding_B"}


class LowRankPair(NamedTuple):
    """Names of the two factors of an update of a module's weight."""

    module: str
    leaf: str
    first: str
    second: str
    diagonal: str = ""
    magnitude: str = ""
    core: str = ""

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of all tensors that make the update."""
        return tuple(name for name in self[2:] if name)


def low_rank_pairs(names: Mapping[str, object]) -> dict[str, LowRankPair]:
    """Find the pairs."""
    pairs: dict[str, LowRankPair] = {}
    for name in names:
        if match := _FIRST.fullmatch(name):
            second = f"{match['module']}.{_SECOND[match['factor']]}{match['rest']}"
            if second in names:
                base = "lora_embedding" if "embedding" in match["factor"] else "lora"
                leaf = base + match["rest"].removesuffix(".weight")
                start, rest = f"{match['module']}.lora_", match["rest"]
                more = [f"{start}E{rest.removesuffix('.weight')}", f"{start}magnitude_vector{rest}"]
                if more[1] not in names:  # stored as a parameter, or as that of a module
                    more[1] = more[1].removesuffix(".weight")
                more.append(f"{start}mid{rest}")
                found = [other if other in names else "" for other in more]
                pairs[name] = LowRankPair(match["module"], leaf, name, second, *found)
    return pairs


def low_rank_product(tensors: Mapping[str, StoredTensor], pair: LowRankPair, config: Mapping[str, Any]) -> StoredTensor:
    """The product of a pair, without the scale that a state dict does not tell (alpha does not depend on it)."""

    def made() -> tuple[Tensor, int]:
        diagonal = tensors[pair.diagonal].read() if pair.diagonal else None
        down, up = tensors[pair.first].read(), tensors[pair.second].read()
        if pair.core:
            down = with_core(down, tensors[pair.core].read())
        return low_rank_matrices(down, up, diagonal=diagonal, sizes=sizes_in(config))

    def product() -> Tensor:
        matrices, _ = made()
        return matrices[0] if len(matrices) == 1 else matrices

    reason = RESCALED if pair.magnitude else tensors[pair.first].reason or tensors[pair.second].reason
    return StoredTensor(product, reason, lambda: made()[1])
