"""Numbers of attention heads that a model's configuration tells, whichever of the usual names it has for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

_SHARED = ("num_key_value_heads", "n_query_groups", "num_query_groups", "num_kv_heads", "multi_query_group_num")


class Heads(NamedTuple):
    """Numbers of query heads and of key and value heads, the size of a head, and whether they lie in groups."""

    queries: int
    shared: int
    size: int
    grouped: bool = False

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Numbers of rows of queries, keys and values."""
        return self.queries * self.size, self.shared * self.size, self.shared * self.size


def heads_in(config: Mapping[str, Any]) -> Heads | None:
    """Return the heads that a configuration tells; None if it does not."""
    queries = first_number(config, "num_attention_heads", "n_head", "num_heads", "n_heads")
    nested = config.get("attn_config")  # of MPT and DBRX
    shared = first_number(nested, "kv_n_heads") if isinstance(nested, Mapping) else 0
    shared = shared or first_number(config, *_SHARED) or queries
    size = first_number(config, "head_dim", "head_size", "kv_channels")
    width = first_number(config, "hidden_size", "n_embd", "d_model", "embed_dim")
    size = size or (width // queries if queries else 0)
    return Heads(queries, shared, size) if queries and shared and size and queries % shared == 0 else None


def first_number(config: Mapping[str, Any], *names: str) -> int:
    """Return the first of some entries that is a positive integer; 0 if none is."""
    return next((value for name in names if isinstance(value := config.get(name), int) and value > 0), 0)
