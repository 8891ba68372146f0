"""Low-rank updates (LoRA): the product of the two factors is the matrix that acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from lightning_farms.analysis.weights._matrices import convolution_matrices, stack
from lightning_farms.analysis.weights._parametrised import HeldWeight, held_weights
from lightning_farms.analysis.weights.layer_weight import ModuleWeight

_PAIRS = {"lora": ("lora_A", "lora_B"), "lora_embedding": ("lora_embedding_A", "lora_embedding_B")}


def low_rank_products(module: nn.Module) -> Iterator[ModuleWeight]:
    r"""The updates :math:`s B A` that a module adds to its weight.

    Known are the layers of peft (``lora_A`` and ``lora_B`` hold a module or parameter for each adapter, the scales
    :math:`s` are in ``scaling``) and of loralib (two parameters). Of a convolution each kernel position is a matrix.

    Reference:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, equation 3.
    """
    for suffix, (first, second) in _PAIRS.items():
        down, up = _factors(getattr(module, first, None)), _factors(getattr(module, second, None))
        for adapter in down:
            if adapter in up:
                matrices = _scale(module, adapter) * _product(module, down[adapter].value, up[adapter].value)
                parameters = down[adapter].parameters + up[adapter].parameters
                shape = tuple(matrices.shape[-2:]) if len(matrices) == 1 else tuple(matrices.shape)
                name = f"{suffix}.{adapter}" if adapter else suffix
                rank = None if _is_flat_kernel(module, down[adapter].value) else up[adapter].value.shape[1]
                yield ModuleWeight(name, "low-rank product", matrices, parameters, shape, rank=rank)


def _factors(holder: object) -> dict[str, HeldWeight]:
    """One factor for each adapter; a sole one has no name."""
    if isinstance(holder, nn.ParameterDict):
        return {name: HeldWeight(cast(Tensor, factor), (factor,)) for name, factor in holder.items()}
    if isinstance(holder, nn.ModuleDict):
        return {name: held_weights(child)["weight"] for name, child in holder.items()}
    if isinstance(holder, nn.Module):
        return {"": held_weights(holder)["weight"]}
    return {"": HeldWeight(holder, (holder,))} if isinstance(holder, Tensor) else {}


def _scale(module: nn.Module, adapter: str) -> float:
    scaling = getattr(module, "scaling", 1.0)
    return float(scaling.get(adapter, 1.0)) if isinstance(scaling, Mapping) else float(scaling)


def _product(module: nn.Module, down: Tensor, up: Tensor) -> Tensor:
    """B A for each kernel position and, where A has several times the rank that B has, for each such group of rows."""
    dtype = torch.promote_types(down.dtype, torch.float32)
    rank = up.shape[1]
    left = up.to(dtype).flatten(1).unflatten(0, (len(down) // rank, -1))
    right = down.to(dtype).flatten(2) if down.ndim > 2 else down.to(dtype).unsqueeze(2)
    right = right.unflatten(0, (-1, rank)).permute(0, 3, 1, 2)
    with torch.autocast("cpu" if left.is_meta else left.device.type, enabled=False):
        product = stack(left.unsqueeze(1) @ right)
    if _is_flat_kernel(module, down):
        return convolution_matrices(product.reshape(module.weight.shape), module.groups)  # type: ignore[arg-type]
    return product


def _is_flat_kernel(module: nn.Module, down: Tensor) -> bool:
    """Whether the product is a convolution's kernel in two dimensions, as in loralib: its positions have any rank."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and down.ndim == 2
