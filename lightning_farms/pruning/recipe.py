"""Use of the ratios in other pruning engines: a recipe for llm-compressor, masks for torch.nn.utils.prune."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, Protocol

import yaml
from torch import Tensor, nn
from torch.nn.utils import prune

from lightning_farms.functional import NofM, magnitude_mask

_MODIFIERS = {"sparsegpt": "SparseGPTModifier", "wanda": "WandaPruningModifier"}
_ABOVE = 1 + 2**-51  # llm-compressor takes int(columns * sparsity), which is 28 for 0.29 and 100 columns
_MOST = {"sparsegpt": 1 - 1e-9, "wanda": 1.0}  # llm-compressor's SparseGPT reads beyond the end at 1
_UNSTRUCTURED = "0:0"
_ROUTERS = "re:.*([.](gate|shared_expert_gate)([.].*)?|router.*)$"  # they stay dense


class Layer(Protocol):
    """Attributes that a layer's ratio needs, in whole weights or as a pattern."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def block(self) -> str: ...  # noqa: D102
    @property
    def size(self) -> int: ...  # noqa: D102
    @property
    def ratio(self) -> float: ...  # noqa: D102
    @property
    def zeros(self) -> int: ...  # noqa: D102
    @property
    def pattern(self) -> NofM | None: ...  # noqa: D102


class Ratios(Protocol):
    """Attributes that an allocation needs: its layers, in the order of the model's modules."""

    @property
    def layers(self) -> Sequence[Layer]: ...  # noqa: D102


class _Target(NamedTuple):
    """A block or a layer of a recipe."""

    name: str
    sparsity: float
    structure: str


def llm_compressor_recipe(
    ratios: Ratios, method: Literal["sparsegpt", "wanda"] = "sparsegpt", *, damping: float = 0.01
) -> str:
    """Write an allocation as a recipe for llm-compressor (tried with 0.14), for those who have many GPUs.

    If all layers of every block have the same ratio, the blocks are the targets, with a list of their sparsities;
    otherwise the layers are. Patterns become one modifier for each n of m. Layers that lose nothing are left out.

    The resulting counts are not exact, unlike those of :func:`lightning_farms.pruning.prune`: Wanda rounds the number
    of zeros in each row down, and SparseGPT prunes at least one weight more in each 128 columns.

    Args:
        ratios: An allocation, its layers in the order of the model's modules (llm-compressor goes by that order, not by
            names). Experts that are fused into one parameter are not modules; the run then stops and says so.
        method: "sparsegpt" or "wanda".
        damping: Damping of SparseGPT, as a fraction of the mean of the Hessian's diagonal.

    Returns:
        The recipe, YAML; ``llmcompressor.oneshot(model=model, dataset=..., recipe=text)`` takes it as it is.

    Raises:
        ValueError: An unknown method, or an allocation that prunes nothing.

    Example:
        >>> from types import SimpleNamespace as Namespace
        >>> sizes = {"layers.0.fc": 0.25, "layers.1.fc": 0.75}
        >>> layers = [
        ...     Namespace(name=name, block=name[:8], size=64, ratio=ratio, zeros=int(64 * ratio), pattern=None)
        ...     for name, ratio in sizes.items()
        ... ]
        >>> print(llm_compressor_recipe(Namespace(layers=layers), "wanda"), end="")
        pruning_stage:
          pruning_modifiers:
            WandaPruningModifier:
              sparsity: [0.2500000000000001, 0.7500000000000003]
              mask_structure: 0:0
              targets: [layers.0, layers.1]
              ignore: ['re:.*([.](gate|shared_expert_gate)([.].*)?|router.*)$']
    """
    if method not in _MODIFIERS:
        raise ValueError(f'Expected argument `method` to be "sparsegpt" or "wanda", but got {method!r}.')
    targets = [target for target in _targets(ratios.layers) if target.sparsity > 0]
    if not targets:
        raise ValueError("Expected argument `ratios` to prune something, but got no layer with a ratio above 0.")
    stage: dict[str, Any] = {}
    for structure in dict.fromkeys(target.structure for target in targets):
        chosen = [target for target in targets if target.structure == structure]
        group = "pruning" if structure == _UNSTRUCTURED else f"pruning_{structure.replace(':', '_of_')}"
        stage[f"{group}_modifiers"] = {_MODIFIERS[method]: _settings(chosen, structure, method, damping)}
    text: str = yaml.safe_dump({"pruning_stage": stage}, sort_keys=False, default_flow_style=None, width=116)
    return text


def prune_with_torch(model: nn.Module, ratios: Ratios) -> None:
    """Prune by magnitude with ``torch.nn.utils.prune``, in the allocation's whole numbers of weights.

    Afterwards each layer holds ``weight_orig`` and ``weight_mask``, and its weight is their product. The functions of
    ``torch.nn.utils.prune`` work as usual: ``prune.remove(layer, "weight")`` makes the pruning permanent.

    Args:
        model: A model that has the allocation's layers; it is changed.
        ratios: An allocation; a layer's name is that of its module, or of a parameter (fused experts, whose weights are
            compared over all experts).

    Raises:
        ValueError: The model lacks a layer, or has it in another size; the model is then left as it was.

    Example:
        >>> from types import SimpleNamespace as Namespace
        >>> model = nn.Sequential(nn.Linear(4, 4))
        >>> layer = Namespace(name="0", block="0", size=16, ratio=0.3, zeros=5, pattern=None)
        >>> prune_with_torch(model, Namespace(layers=[layer]))
        >>> int((model[0].weight == 0).sum()), prune.is_pruned(model)
        (5, True)
    """
    places = [_located(model, layer) for layer in ratios.layers]
    masks = [_mask(*place, layer) for place, layer in zip(places, ratios.layers, strict=True)]
    for (module, parameter), mask in zip(places, masks, strict=True):
        prune.custom_from_mask(module, parameter, mask)


def _targets(layers: Sequence[Layer]) -> list[_Target]:
    """The blocks if all layers of each block have the same ratio, otherwise the layers."""
    by_block = {layer.block: _target(layer.block, layer) for layer in layers}
    if all(by_block[layer.block] == _target(layer.block, layer) for layer in layers):
        return list(by_block.values())
    return [_target(layer.name, layer) for layer in layers]


def _target(name: str, layer: Layer) -> _Target:
    if layer.pattern is not None:
        n, m = layer.pattern
        return _Target(name, n / m, f"{n}:{m}")
    return _Target(name, layer.ratio * _ABOVE, _UNSTRUCTURED)


def _settings(targets: Sequence[_Target], structure: str, method: str, damping: float) -> dict[str, Any]:
    options: dict[str, Any] = {
        "sparsity": [min(target.sparsity, _MOST[method]) for target in targets],
        "mask_structure": structure,
        "targets": [target.name for target in targets],
        "ignore": [_ROUTERS],
    }
    if method == "sparsegpt":
        options |= {"dampening_frac": damping, "block_size": 128}
    return options


def _located(model: nn.Module, layer: Layer) -> tuple[nn.Module, str]:
    """The module that holds a layer's weight, and the name of the weight in it."""
    modules = dict(model.named_modules())
    parent, _, last = layer.name.rpartition(".")
    holder, parameter = (modules[layer.name], "weight") if layer.name in modules else (modules.get(parent), last)
    values = getattr(holder, parameter, None)
    if holder is None or not isinstance(values, Tensor):
        raise ValueError(f"Expected argument `model` to have the layer {layer.name}, but got {type(model).__name__}.")
    if values.numel() != layer.size:
        raise ValueError(
            f"Expected argument `model` to have {layer.size} weights in {layer.name}, but got {values.numel()}."
        )
    return holder, parameter


def _mask(module: nn.Module, parameter: str, layer: Layer) -> Tensor:
    """True where a weight stays, in the shape of the parameter; patterns run along the inputs."""
    values: Tensor = getattr(module, parameter)
    transposed = type(module).__name__ == "Conv1D" or bool(getattr(module, "is_transposed", False))
    stored = values.detach().mT if transposed else values.detach()
    outputs = stored.reshape(-1, stored.shape[-1]) if stored.ndim == 3 else stored.flatten(1)
    mask = magnitude_mask(outputs, layer.zeros if layer.pattern is None else layer.pattern).reshape(stored.shape)
    return mask.mT if transposed else mask
