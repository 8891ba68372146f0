"""Where queries, keys and values lie in a fused weight, told by its name and the model's configuration.

Rows are either all queries, then all keys, then all values (concatenated), or (groups, queries of a group + 2, size of
a head), with each group's keys and values after its queries (grouped; with one query per group, interleaved).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis.weights._heads import Heads, first_number, heads_in


class FusedRows(NamedTuple):
    """The rows of each part of a fused weight, with a remark if they are a guess."""

    parts: dict[str, slice | Tensor]
    remark: str = ""


class NotTold(ValueError):
    """It is not known how the parts of a fused weight are arranged."""


_Rule = Callable[[Mapping[str, Any], Heads], Heads]


def _concatenated(config: Mapping[str, Any], heads: Heads) -> Heads:
    return heads


def _grouped(config: Mapping[str, Any], heads: Heads) -> Heads:
    return heads._replace(grouped=True)


def _interleaved(config: Mapping[str, Any], heads: Heads) -> Heads:
    return heads._replace(shared=heads.queries, grouped=True)


def _falcon(config: Mapping[str, Any], heads: Heads) -> Heads:
    if config.get("new_decoder_architecture"):
        return heads._replace(shared=first_number(config, "num_kv_heads", "n_head_kv") or heads.shared, grouped=True)
    return heads._replace(shared=1) if config.get("multi_query", True) else _interleaved(config, heads)


def _big_code(config: Mapping[str, Any], heads: Heads) -> Heads:
    return heads._replace(shared=1) if config.get("multi_query", True) else _interleaved(config, heads)


_ANY = ""  # any type of model
_TAKEN = (  # timm's
    "the configuration does not tell the heads, and queries, keys and values are taken to lie one below the other"
)
_RULES: Mapping[str, Mapping[str, _Rule]] = {
    "c_attn": {"gpt_bigcode": _big_code, _ANY: _concatenated},
    "query_key_value": {
        "gpt_neox": _interleaved,
        "gpt_neox_japanese": _interleaved,
        "bloom": _interleaved,
        "persimmon": _interleaved,
        "falcon": _falcon,
        "RefinedWeb": _falcon,
        "RefinedWebModel": _falcon,
        "chatglm": _concatenated,
    },
    "qkv_proj": {"phi3": _concatenated, "phi3_v": _concatenated, "phi4_multimodal": _concatenated},
    "Wqkv": {_ANY: _concatenated},
    "W_pack": {_ANY: _concatenated},
    "att_proj": {_ANY: _concatenated},
    "wqkv": {"internlm2": _grouped},
    "qkv": {_ANY: _concatenated},
    "to_qkv": {_ANY: _concatenated},
    "attn": {_ANY: _grouped},  # litgpt's `attn.attn`
}


def is_fused(name: str) -> bool:
    """Whether a layer's name is that of a fused weight."""
    _, _, leaf = name.rpartition(".")
    return leaf in _RULES and (leaf != "attn" or name.endswith("attn.attn"))


def fused_rows(name: str, rows: int, columns: int, config: Mapping[str, Any]) -> FusedRows:
    """Return the rows of each part of a fused weight that has this many rows and columns.

    Raises:
        NotTold: the configuration does not tell them.
    """
    if not config:
        raise NotTold("there is no configuration beside the weights that tells how their rows are arranged")
    if rows == 2 * columns and "crossattention" in name.split("."):
        return FusedRows({"k": slice(0, columns), "v": slice(columns, rows)})
    known = list(_candidates(name, config))
    heads = next((each for each in known if sum(each.sizes) == rows), None)
    any_model = _ANY in _RULES[name.rpartition(".")[2]] and not name.endswith("attn.attn")
    if heads is None and any_model and rows == 3 * columns:
        heads = Heads(1, 1, columns)  # in a part of the model that the configuration says less about
    if heads is None:
        raise NotTold(f"the configuration does not tell how the {rows} rows are arranged")
    return FusedRows(dict(zip("qkv", _rows(heads), strict=True)), "" if known else _TAKEN)


def _candidates(name: str, config: Mapping[str, Any]) -> Iterator[Heads]:
    """Yield the heads according to the configuration of the whole model and of each of its parts."""
    rules = _RULES[name.rpartition(".")[2]]
    for part in (config, *(each for each in config.values() if isinstance(each, Mapping))):
        rule = rules.get(str(part.get("model_type", config.get("model_type"))), rules.get(_ANY))
        heads = heads_in(part)
        if rule is not None and heads is not None:
            yield rule(part, heads)


def _rows(heads: Heads) -> tuple[slice | Tensor, slice | Tensor, slice | Tensor]:
    queries, shared, _ = heads.sizes
    if not heads.grouped:
        return slice(0, queries), slice(queries, queries + shared), slice(queries + shared, queries + 2 * shared)
    each = heads.queries // heads.shared
    places = torch.arange(queries + 2 * shared, device="cpu").view(heads.shared, each + 2, heads.size)
    return places[:, :-2].flatten(), places[:, -2].flatten(), places[:, -1].flatten()
