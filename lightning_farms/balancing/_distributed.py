"""The processes that train together, for loops without a Trainer."""

from __future__ import annotations

import torch
from torch import Tensor, distributed, nn

from lightning_farms.analysis.ranks import Ranks


def all_ranks(model: nn.Module) -> Ranks | None:
    """All processes of the default group; None if there is only one."""
    if not (distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1):
        return None
    device = next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))

    def total(table: Tensor) -> Tensor:
        summed = table.to(device)
        distributed.all_reduce(summed)
        return summed.cpu()

    return Ranks(distributed.get_rank(), distributed.get_world_size(), total)
