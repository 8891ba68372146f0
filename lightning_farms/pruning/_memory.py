"""Keeps one block on the device at a time, including blocks of models that accelerate has put on disk."""

from __future__ import annotations

import resource
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn


@contextmanager
def block_on_device(block: nn.Module, device: torch.device, *, drop: bool = False) -> Iterator[None]:
    """Move a block's tensors to a device temporarily, and back afterwards.

    Tensors that accelerate left on disk are read, and afterwards stay on the CPU, or are freed with `drop`, for blocks
    that have been written elsewhere.
    """
    offloaded = _load(block)
    homes = {tensor.device for tensor in _tensors(block)}
    block.to(device)
    try:
        yield
    finally:
        if offloaded and drop:
            block.to("meta")
        else:
            block.to(homes.pop() if len(homes) == 1 else torch.device("cpu"))


def device_of(model: nn.Module) -> torch.device:
    """Device of a model's first parameter that is not on disk."""
    return next((p.device for p in model.parameters() if not p.is_meta), torch.device("cpu"))


def peak_memory(device: torch.device) -> int:
    """Peak memory in bytes so far: of a GPU as counted by PyTorch, otherwise of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _tensors(block: nn.Module) -> list[torch.Tensor]:
    return [*block.parameters(), *block.buffers()]


def _load(block: nn.Module) -> bool:
    """Load the tensors of a block that accelerate dispatched and remove its hooks; return whether any were on disk."""
    hooked = [module for module in block.modules() if hasattr(module, "_hf_hook")]
    if not hooked:
        return False
    from accelerate.hooks import remove_hook_from_module
    from accelerate.utils import set_module_tensor_to_device

    offloaded = any(tensor.device.type == "meta" for tensor in _tensors(block))
    for module in hooked:
        held = getattr(module._hf_hook, "weights_map", None)
        for name, tensor in [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]:
            if tensor.device.type == "meta" and held is not None:
                set_module_tensor_to_device(module, name, "cpu", value=held[name])
    remove_hook_from_module(block, recurse=True)
    return offloaded
