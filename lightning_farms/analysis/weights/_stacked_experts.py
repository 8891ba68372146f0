"""Experts that are stacked in one matrix, as in DBRX and Megatron's GroupedMLP."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from lightning_farms.analysis.weights._heads import first_number

_COUNTS = ("moe_num_experts", "num_local_experts", "num_experts", "n_routed_experts", "num_moe_experts", "n_experts")
_BY_ROWS, _BY_COLUMNS = ("w1", "v1", "w2", "weight2"), ("weight1",)
_NAME = re.compile(rf"(.*\.)?experts(\.mlp)?\.(?P<leaf>{'|'.join((*_BY_ROWS, *_BY_COLUMNS))})")
NOT_TOLD = "experts seem to lie in it one below the other, and no config.json beside the file tells how many"


def stacked_leaf(name: str) -> str:
    """Return the last part of a tensor's name if that is one of stacked experts; empty if it is not."""
    match = _NAME.fullmatch(name)
    return match["leaf"] if match else ""


def experts_in(config: Mapping[str, Any]) -> int:
    """Return the number of experts that a configuration tells; 0 if it does not."""
    nested = config.get("ffn_config")  # of DBRX
    return first_number(config, *_COUNTS) or (first_number(nested, *_COUNTS) if isinstance(nested, Mapping) else 0)


def experts_of(module: nn.Module, name: str) -> int:
    """Return the number of experts that are stacked in a module's matrix; 0 if they are not stacked."""
    if name not in (*_BY_ROWS, *_BY_COLUMNS) or not re.search(r"Expert|MoE|Moe|GroupedMLP", type(module).__name__):
        return 0
    counts = (getattr(module, count, 0) for count in _COUNTS)
    return next((count for count in counts if isinstance(count, int) and count > 1), 0)


def unstacked(matrix: Tensor, leaf: str, count: int) -> Tensor | None:
    """Cut a matrix into (experts, rows, columns); None if it cannot be cut."""
    if count < 2 or matrix.ndim != 2 or matrix.shape[int(leaf in _BY_COLUMNS)] % count:
        return None
    if leaf in _BY_COLUMNS:  # as in the program: an expert's numbers are contiguous, not its columns
        return matrix.reshape(count, matrix.shape[0], -1)
    return matrix.reshape(count, -1, matrix.shape[1])
