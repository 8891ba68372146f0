"""Finding the weights of a decoder that are pruned, by the model's structure, not by names of model families."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from lightning_farms.analysis.weights.model import layer_weights

_GATES = {"gate", "shared_expert_gate"}
"""Names of linear layers that choose experts; a layer so named that widens its input is half of a gated unit, and is
pruned."""

_MOST_DENSE = 0.05
"""Largest share of the matrix entries in all lists of modules that may be in layers of unknown kind without a note."""


@dataclass(frozen=True)
class PrunableWeight:
    """A weight of a decoder block that is pruned.

    Attributes:
        name: name of the layer in the model; for fused experts followed by that of the parameter.
        block: name of the decoder block to which it belongs.
        module: the module that holds the weight.
        parameter: name of the parameter in the module.
        transposed: whether the parameter is stored as (..., inputs, outputs).
    """

    name: str
    block: str
    module: nn.Module
    parameter: str = "weight"
    transposed: bool = False

    @property
    def matrices(self) -> Tensor:
        """The matrices (P, outputs, inputs), P = 1 except for fused experts; a view, so that writing changes the model.

        For a weight that accelerate has left on disk it is a copy, read anew at each access.
        """
        stored: Tensor = getattr(self.module, self.parameter).detach()
        held = getattr(getattr(self.module, "_hf_hook", None), "weights_map", None)
        if stored.is_meta and held is not None:
            stored = held[self.parameter]
        matrices = stored.mT if self.transposed else stored
        return matrices if matrices.ndim == 3 else matrices.unsqueeze(0)

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(getattr(self.module, self.parameter).numel())


def decoder_blocks(model: nn.Module) -> dict[str, nn.Module]:
    """Find the repeated blocks of a decoder: the children of the ``ModuleList`` with most matrix entries.

    Lists in a transformers submodel for images or sounds do not count, nor do lists outside of the language model that
    ``model.get_decoder()`` returns.

    Args:
        model: a language model, or any other model with a list of blocks; its tensors may be on the meta device.

    Returns:
        The blocks by name, in order.

    Raises:
        ValueError: there is no list of modules with weights, or the model has an encoder besides the decoder.

    Example:
        >>> blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        >>> list(decoder_blocks(nn.ModuleDict({"embed": nn.Embedding(9, 4), "layers": blocks})))
        ['layers.0', 'layers.1']
    """
    if getattr(getattr(model, "config", None), "is_encoder_decoder", False):
        raise ValueError(f"Expected argument `model` to be a decoder, but {type(model).__name__} has an encoder too.")
    others = tuple(
        f"{name}."
        for name, module in model.named_modules()
        if name and getattr(module, "main_input_name", "input_ids") != "input_ids"
    )
    lists = {
        name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList) and len(module)
    }
    lists = {name: module for name, module in lists.items() if not f"{name}.".startswith(others)} or lists
    decoder = set(_language_model(model).modules())
    lists = {name: module for name, module in lists.items() if module in decoder} or lists
    entries = {name: sum(p.numel() for p in module.parameters() if p.ndim >= 2) for name, module in lists.items()}
    largest = max(entries, key=entries.__getitem__, default=None)
    if largest is None or entries[largest] == 0:
        raise ValueError(
            f"Expected argument `model` to hold its blocks in a torch.nn.ModuleList, but {type(model).__name__} has "
            "none with weight matrices."
        )
    prefix = f"{largest}." if largest else ""
    return {f"{prefix}{name}": block for name, block in lists[largest].named_children()}


def _language_model(model: nn.Module) -> nn.Module:
    """Return the language model within a model of several kinds of input, if the model has a method that tells."""
    ask = getattr(model, "get_decoder", None)
    try:
        found = ask() if callable(ask) else model
    except (AttributeError, NotImplementedError):  # transformers gives every model the method
        return model
    return found if isinstance(found, nn.Module) else model


def prunable_weights(model: nn.Module, blocks: Mapping[str, nn.Module] | None = None) -> list[PrunableWeight]:
    """Find the weights of a decoder's blocks that are pruned, in the order of the modules.

    These are the weights of linear layers (``torch.nn.Linear``, transformers' ``Conv1D``) and of experts that are fused
    into parameters of three dimensions. Embeddings, heads, norms, convolutions, the routers of experts and the factors
    of low-rank updates (LoRA) stay dense.

    Args:
        model: a language model.
        blocks: blocks as returned by :func:`decoder_blocks`; None: they are searched for.

    Returns:
        The weights; a weight that several layers share is listed once, under its first name.

    Raises:
        ValueError: there are no blocks, or they have no weights that are pruned.

    Example:
        >>> blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 6), nn.ReLU()) for _ in range(2))
        >>> weights = prunable_weights(nn.ModuleDict({"layers": blocks}))
        >>> [(weight.name, weight.block, tuple(weight.matrices.shape)) for weight in weights]
        [('layers.0.0', 'layers.0', (1, 6, 4)), ('layers.1.0', 'layers.1', (1, 6, 4))]
    """
    found: list[PrunableWeight] = []
    seen: set[int] = set()
    for block_name, block in (decoder_blocks(model) if blocks is None else blocks).items():
        seen |= _factors_of(block).keys()
        for weight in _weights_of(block_name, block):
            identity = id(getattr(weight.module, weight.parameter))
            if identity not in seen and weight.size:
                seen.add(identity)
                found.append(weight)
    if not found:
        raise ValueError(
            f"Expected argument `model` to have linear layers in its blocks, but {type(model).__name__} has none."
        )
    return found


def left_dense(model: nn.Module, weights: Sequence[PrunableWeight]) -> str:
    """Say which matrices in the model's lists of modules are not pruned, if they are factors of LoRA or a large share.

    Args:
        model: a language model.
        weights: weights as returned by :func:`prunable_weights`.

    Returns:
        A sentence, or an empty string.

    Example:
        >>> block = nn.Linear(4, 6)
        >>> block.mixing = nn.Parameter(block.weight.detach().clone())
        >>> model = nn.ModuleDict({"layers": nn.ModuleList([block])})
        >>> left_dense(model, prunable_weights(model)).partition(" in no ")[0]
        "50% of the matrix entries in the model's stacks of blocks are"
    """
    if factors := _factors_of(model):
        return (
            f"the factors of {len(set(factors.values()))} low-rank updates (LoRA) stay dense, and fill the zeros when "
            "they are merged: merge them first (peft's merge_and_unload), or keep them apart"
        )
    lists = [(name, module) for name, module in model.named_modules() if isinstance(module, nn.ModuleList)]
    sizes = {
        id(parameter): (re.sub(r"\b\d+\b", "*", f"{name}.{path}".lstrip(".")), parameter.numel())
        for name, module in lists
        for path, parameter in module.named_parameters()
        if parameter.ndim >= 2
    }
    total = sum(size for _, size in sizes.values())
    for weight in weights:
        sizes.pop(id(getattr(weight.module, weight.parameter)), None)
    dense: Counter[str] = Counter()
    for name, size in sizes.values():
        dense[name] += size
    if dense.total() <= _MOST_DENSE * total:
        return ""
    return (
        f"{dense.total() / total:.0%} of the matrix entries in the model's stacks of blocks are in no layer that is "
        f"pruned, and stay dense: "
        f"{', '.join(name for name, _ in dense.most_common(3))}{', ...' if len(dense) > 3 else ''}"
    )


def _factors_of(model: nn.Module) -> dict[int, str]:
    """{id of a parameter: the low-rank update (LoRA) of which it is a factor}."""
    updates = (layer for layer in layer_weights(model, values=False) if layer.kind == "low-rank product")
    return {id(parameter): layer.name for layer in updates for parameter in layer.parameters}


def _weights_of(block_name: str, block: nn.Module) -> Iterator[PrunableWeight]:
    for path, module in block.named_modules():
        name = f"{block_name}.{path}" if path else block_name
        if isinstance(module, nn.Linear):
            if not _is_router(path.split("."), module):
                yield PrunableWeight(name, block_name, module)
        elif type(module).__name__ == "Conv1D" and hasattr(module, "nf"):
            yield PrunableWeight(name, block_name, module, transposed=True)
        else:
            for parameter, values in module.named_parameters(recurse=False):
                if values.ndim == 3 and values.shape[0] in _numbers_of_experts(module):
                    yield PrunableWeight(
                        f"{name}.{parameter}", block_name, module, parameter, _inputs_first(module, parameter)
                    )


def _is_router(path: Sequence[str], layer: nn.Linear) -> bool:
    if any("router" in part for part in path):
        return True
    return not _GATES.isdisjoint(path) and layer.out_features < layer.in_features


def _numbers_of_experts(module: nn.Module) -> set[int]:
    """Numbers in the module's attributes: `num_experts`, or `num_routed_experts` if some experts do nothing, ..."""
    return {value for name, value in vars(module).items() if "experts" in name and type(value) is int}


def _inputs_first(module: nn.Module, parameter: str) -> bool:
    """Whether fused experts are stored as (P, inputs, outputs): told by transformers, or (Llama 4) by the shapes."""
    said = getattr(module, "is_transposed", None)
    hidden, values = getattr(module, "hidden_size", None), getattr(module, parameter)
    if said is not None or values.shape[1] == values.shape[2]:
        return bool(said)
    return bool(values.shape[2 if parameter.startswith("down") else 1] == hidden)
