"""Weights of low-rank updates (LoRA): the product of the two factors, which is the matrix that acts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from torch import Tensor, nn

from lightning_farms.analysis.weights._matrices import convolution_matrices
from lightning_farms.analysis.weights._parametrised import HeldWeight, held_weights
from lightning_farms.analysis.weights._products import RESCALED, expert_matrices, low_rank_matrices
from lightning_farms.analysis.weights.layer_weight import NO_MATRICES, ModuleWeight

_PAIRS = (
    ("lora", "lora_A", "lora_B"),
    ("lora", "lora_a", "lora_b"),
    ("lora_embedding", "lora_embedding_A", "lora_embedding_B"),
)
_OF_NEMO = (("lora", "linear_in", "linear_out"),)


def holds_factors(module: nn.Module) -> bool:
    """Whether a module may hold factors for :func:`low_rank_products`."""
    return any(hasattr(module, first) for _, first, _ in _PAIRS + _OF_NEMO)


def low_rank_products(module: nn.Module) -> Iterator[ModuleWeight]:
    r"""Yield the updates :math:`s B A`, or :math:`s B \mathrm{diag}(E) A` (AdaLoRA), that a module adds to its weight.

    Known are the layers of peft (``lora_A`` and ``lora_B`` hold a module or parameter for each adapter, and
    ``scaling`` the scales :math:`s`), of loralib (two parameters), of torchtune (``lora_a``, ``alpha`` / ``rank``), and
    of NeMo (``linear_in``, ``linear_out``, ``alpha`` / ``dim``). Each kernel position of a convolution is a matrix.

    Reference:
        Hu et al., LoRA: Low-Rank Adaptation of Large Language Models, ICLR 2022, equation 3.
    """
    for suffix, first, second in _PAIRS + (_OF_NEMO if _is_of_nemo(module) else ()):
        down, up = _factors(getattr(module, first, None)), _factors(getattr(module, second, None))
        for adapter in down:
            if adapter in up:
                name = f"{suffix}.{adapter}" if adapter else suffix
                yield _of_pair(module, name, adapter, down[adapter], up[adapter])


def _is_of_nemo(module: nn.Module) -> bool:
    """Whether a module is NeMo's adapter, by its class's name, without a function between its two layers."""
    linear = type(getattr(module, "activation", None)) is nn.Identity
    return linear and any(cls.__name__ == "ParallelLinearAdapter" for cls in type(module).__mro__)


def _of_pair(module: nn.Module, name: str, adapter: str, down: HeldWeight, up: HeldWeight) -> ModuleWeight:
    diagonal = _factors(getattr(module, "lora_E", None)).get(adapter)
    parameters = down.parameters + up.parameters + (diagonal.parameters if diagonal else ())
    if adapter in _factors(getattr(module, "lora_magnitude_vector", None)):
        return ModuleWeight(name, "low-rank product", NO_MATRICES, parameters, reason=RESCALED)
    experts = getattr(module, "num_experts", 1) if hasattr(module, "parameter_name") else 1  # peft's target_parameters
    if experts > 1:
        product, rank = expert_matrices(down.value, up.value, experts)
    else:
        product, rank = low_rank_matrices(
            down.value, up.value, diagonal=diagonal.value if diagonal else None, sizes=_sizes(module)
        )
    matrices = _scale(module, adapter) * product
    flat = _is_flat_kernel(module, down.value)
    if flat:
        matrices = convolution_matrices(matrices.reshape(module.weight.shape), module.groups)  # type: ignore[arg-type]
    shape = tuple(matrices.shape[-2:]) if len(matrices) == 1 else tuple(matrices.shape)
    return ModuleWeight(name, "low-rank product", matrices, parameters, shape, rank=None if flat else rank)


def _sizes(module: nn.Module) -> tuple[int, ...]:
    """Return the numbers of rows of queries, keys and values that LitGPT's layers hold; empty for other layers."""
    sizes = getattr(module, "qkv_shapes", ())
    return tuple(sizes) if isinstance(sizes, (list, tuple)) and all(isinstance(size, int) for size in sizes) else ()


def _factors(holder: object) -> dict[str, HeldWeight]:
    """Return the factor of each adapter by its name; a sole factor has an empty name."""
    if isinstance(holder, nn.ParameterDict):
        return {name: HeldWeight(cast(Tensor, factor), (factor,)) for name, factor in holder.items()}
    if isinstance(holder, nn.ModuleDict):
        return {name: held["weight"] for name, child in holder.items() if "weight" in (held := held_weights(child))}
    if isinstance(holder, nn.Module):
        found = held_weights(holder)
        return {"": found["weight"]} if "weight" in found else {}
    return {"": HeldWeight(holder, (holder,))} if isinstance(holder, Tensor) else {}


def _scale(module: nn.Module, adapter: str) -> float:
    alpha, rank = getattr(module, "alpha", None), getattr(module, "rank", getattr(module, "dim", None))
    known = all(isinstance(number, (int, float)) for number in (alpha, rank)) and rank
    scaling = getattr(module, "scaling", cast(float, alpha) / cast(float, rank) if known else 1.0)
    return float(scaling.get(adapter, 1.0)) if isinstance(scaling, Mapping) else float(scaling)


def _is_flat_kernel(module: nn.Module, down: Tensor) -> bool:
    """Whether the product is a convolution's kernel as one matrix, as in loralib, whose positions may have any rank."""
    return isinstance(module, (nn.Conv1d, nn.Conv2d, nn.Conv3d)) and down.ndim == 2
