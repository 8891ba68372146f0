"""Device map that leaves the blocks of a language model on disk."""

from __future__ import annotations

import torch
from torch import nn

from lightning_farms.pruning.prunable import decoder_blocks


def blocks_on_disk(model: nn.Module, device: torch.device) -> dict[str, str]:
    """Device map for accelerate that leaves the decoder blocks on disk and puts everything else on the device."""
    return _placed(model, "", set(decoder_blocks(model)), str(device))


def _placed(module: nn.Module, name: str, blocks: set[str], device: str) -> dict[str, str]:
    """Places of a module's parts if there is a block among them, otherwise of the whole module."""
    if name in blocks:
        return {name: "disk"}
    prefix = f"{name}." if name else ""
    if not any(block.startswith(prefix) for block in blocks):
        return {name: device}
    own = (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))
    places = {f"{prefix}{key}": device for key, _ in own}
    for key, child in module.named_children():
        places |= _placed(child, f"{prefix}{key}", blocks, device)
    return places
