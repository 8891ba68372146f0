"""Finds the pairs of factors of low-rank updates (LoRA) among the names of a state dict."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lightning_farms.analysis.checkpoint._effective import StoredTensor
from lightning_farms.analysis.weights._heads import heads_in
from lightning_farms.analysis.weights._products import (
    RESCALED,
    expert_matrices,
    factor_reason,
    low_rank_matrices,
    with_core,
)

_FIRST = re.compile(
    r"(?P<start>(?P<module>.+)[._]|)(?P<factor>lora_[Aa]|lora_down|lora_embedding_A|(?P<lora>lora\d*)(_linear_layer)?\.down)"
    r"(?P<rest>(\.[^.]+)*)"
)
_OF_NEMO = re.compile(
    r"(?P<start>(?P<module>.+\.lora_\w+_adapter|.+\.linear_\w+\.adapter(\.adapter_[a-z]+)?)\.)(?P<factor>linear_in)"
    r"(?P<lora>)(?P<rest>(\.[^.]+)*)"
)
_SECOND = {"lora_A": "lora_B", "lora_a": "lora_b", "lora_embedding_A": "lora_embedding_B", "linear_in": "linear_out"}

_OF_CONTROL = "lora_controlnet"  # an entry of Control-LoRA, whose factors are called `up` and `down` alone
_REPEATED = re.compile(r"[*+?{]")
_MOST_REPEATED = 2
_LONGEST = 200
_EXPERTS_NOT_TOLD = (
    "its factors are those of several experts, and no adapter_config.json beside the file tells how many"
)


class LowRankPair(NamedTuple):
    """Names of a module, its update's two factors, and the update's other tensors (empty if there are none)."""

    module: str
    leaf: str
    first: str
    second: str
    diagonal: str = ""
    magnitude: str = ""
    core: str = ""
    alpha: str = ""

    @property
    def factors(self) -> tuple[str, ...]:
        """Names of all tensors that make up the update."""
        return tuple(name for name in self[2:] if name)


def low_rank_pairs(names: Mapping[str, object]) -> dict[str, LowRankPair]:
    """Return the pairs among some names, by the name of the first factor."""
    found = ((name, _pair(name, names)) for name in names)
    return {name: pair for name, pair in found if pair is not None}


def _pair(name: str, names: Mapping[str, object]) -> LowRankPair | None:
    """Return the pair of which a name is that of the first factor; None if it is not, or if the second is missing."""
    match = None if factor_reason(name) else _OF_NEMO.fullmatch(name) or _FIRST.fullmatch(name)
    if match is not None:
        factor = _SECOND.get(match["factor"]) or match["factor"].replace("down", "up")
        second = f"{match['start']}{factor}{match['rest']}"
        if second in names:
            return _with_others(match, name, second, names)
    module = name.removesuffix(".down")
    if _OF_CONTROL in names and module != name and f"{module}.up" in names:
        return LowRankPair(module, "lora", name, f"{module}.up")
    return None


def _with_others(match: re.Match[str], first: str, second: str, names: Mapping[str, object]) -> LowRankPair:
    """Return a pair with the update's other tensors, as far as they are among the names."""
    module, rest = match["module"] or "", match["rest"]
    within = f"{module}." if module else ""

    def known(*candidates: str) -> str:
        return next((candidate for candidate in candidates if candidate in names), "")

    plain = rest.removesuffix(".weight")
    base = "lora_embedding" if "embedding" in match["factor"] else match["lora"] or "lora"
    magnitudes = (  # the parameter of a module, or a parameter; the name in other programs
        f"{within}lora_magnitude_vector{rest}",
        f"{within}lora_magnitude_vector{plain}",
        f"{within}dora_scale",
    )
    return LowRankPair(
        module,
        base + plain,
        first,
        second,
        diagonal=known(f"{within}lora_E{plain}"),
        magnitude=known(*magnitudes),
        core=known(f"{within}lora_mid{rest}"),
        alpha=known(f"{within}alpha"),
    )


def low_rank_product(tensors: Mapping[str, StoredTensor], pair: LowRankPair, config: Mapping[str, Any]) -> StoredTensor:
    """Return the product of a pair, with its scale if the file or the adapter's config tells it."""

    def made() -> tuple[Tensor, int]:
        diagonal = tensors[pair.diagonal].read() if pair.diagonal else None
        down, up = tensors[pair.first].read(), tensors[pair.second].read()
        if f".{pair.first}".endswith(".lora_a") and down.ndim == up.ndim == 2:  # MLX: (inputs, r) and (r, outputs)
            down, up = down.mT, up.mT
        if pair.core:
            down = with_core(down, tensors[pair.core].read())
        experts = _experts(pair.module, len(down), config.get("adapter", {}))
        if experts > 1:
            return expert_matrices(down, up, experts)
        heads = heads_in(config)
        return low_rank_matrices(down, up, diagonal=diagonal, sizes=heads.sizes if heads else ())

    def product() -> Tensor:
        matrices, rank = made()
        if not pair.diagonal:
            given = tensors[pair.alpha].read() if pair.alpha else None
            matrices = matrices * _scale(pair.module, rank, given, config)
        return matrices[0] if len(matrices) == 1 else matrices

    reason = _reason(pair, config) or tensors[pair.first].reason or tensors[pair.second].reason
    return StoredTensor(product, reason, lambda: made()[1])


def _reason(pair: LowRankPair, config: Mapping[str, Any]) -> str:
    """Return why the product of a pair is not known; empty if it is."""
    if pair.magnitude or config.get("adapter", {}).get("use_dora") is True:
        return RESCALED
    return _EXPERTS_NOT_TOLD if _not_told(pair, config) else ""


def _not_told(pair: LowRankPair, config: Mapping[str, Any]) -> bool:
    """Whether a pair updates a parameter of several experts, by its module's name, and its rank is not known.

    A pattern of ranks in the configuration may name the parameter; the file does not.
    """
    adapter = config.get("adapter", {})
    if adapter and not adapter.get("rank_pattern"):
        return False
    return re.fullmatch(r"(.*\.)?experts(\.base_layer)*", pair.module) is not None


def _experts(module: str, rows: int, adapter: Mapping[str, Any]) -> int:
    """Return the number of experts whose factors lie in A, by the rank in the adapter's configuration; usually 1."""
    rank = _of_module(adapter.get("rank_pattern"), module, adapter.get("r"))
    if not adapter.get("target_parameters") or not isinstance(rank, int) or rank < 1 or rows % rank:
        return 1
    return rows // rank


def _scale(module: str, rank: int, given: Tensor | None, config: Mapping[str, Any]) -> float:
    """Return alpha / r, or alpha / sqrt(r) for rank-stabilised adapters; without alpha, MLX's scale or 1."""
    adapter = config.get("adapter", {})
    alpha: Any = given.item() if given is not None and not given.is_meta and given.numel() == 1 else None
    if alpha is None:
        alpha = _of_module(adapter.get("alpha_pattern"), module, adapter.get("lora_alpha"))
    if not isinstance(alpha, (int, float)) or isinstance(alpha, bool) or not rank:
        settings = adapter.get("lora_parameters")  # the name in MLX
        scale = settings.get("scale") if isinstance(settings, Mapping) else None
        return float(scale) if isinstance(scale, (int, float)) else 1.0
    return float(alpha) / (math.sqrt(rank) if adapter.get("use_rslora") else rank)


def _of_module(patterns: object, module: str, default: object) -> object:
    """Return the value of the first pattern that matches a module's name in the model, or its end after a dot."""
    known = patterns if isinstance(patterns, Mapping) else {}
    plain = module.removeprefix("base_model.model.")
    found = (value for pattern, value in known.items() if _names(str(pattern), plain))
    return next(found, default)


def _names(pattern: str, module: str) -> bool:
    """Whether a name or regular expression matches a module as in peft; expressions that may take forever do not."""
    if module == pattern or module.endswith(f".{pattern}"):
        return True
    if len(pattern) > _LONGEST or len(module) > _LONGEST or len(_REPEATED.findall(pattern)) > _MOST_REPEATED:
        return False
    try:
        return re.match(rf"(.*\.)?({pattern})$", module) is not None
    except re.error:
        return False
