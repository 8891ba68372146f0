"""Finds the weight matrices of a whole model, one after another."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.nn.parameter import is_lazy

from lightning_farms.analysis._engine.failures import not_computed
from lightning_farms.analysis._layout_text import laid_out, usual_layout
from lightning_farms.analysis._names import WRAPPERS
from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights._gathered import full_tensor, gathered, is_sharded, modules_read, must_be_gathered
from lightning_farms.analysis.weights._low_rank import holds_factors, low_rank_products
from lightning_farms.analysis.weights._matrices import stack
from lightning_farms.analysis.weights._parametrised import held_weights, is_parametrisation, own_parameters
from lightning_farms.analysis.weights._products import factor_reason, lone_factor
from lightning_farms.analysis.weights._replacing import evaluated_parametrisations
from lightning_farms.analysis.weights.layer_weight import NO_MATRICES, LayerWeight, ModuleWeight
from lightning_farms.analysis.weights.registry import claimed_weights, kind_of, says_itself

_Reader = Callable[[nn.Module], Iterable[ModuleWeight]]


def layer_weights(
    model: nn.Module, selection: Selection = Selection(), *, values: bool = True
) -> Iterator[LayerWeight]:
    """Iterate over all weight matrices of a model, in the modules' order; a weight shared by two modules comes once.

    A weight that is not selected, or that cannot be analysed (on the meta device, quantised, not initialised, an error
    in computing it), comes with the reason instead of its matrices. A table of embeddings that is also the weight of
    another module (a tied head) comes with that module only. The wrappers of ``torch.compile``, FSDP, activation
    checkpointing and (Distributed)DataParallel are left out of the names.

    Sparse weights are made dense, and sharded ones (DTensors of FSDP2 and tensor parallelism) gathered, for one module
    at a time while its weights are computed; a module is not gathered if none of its weights is selected. Gathering is
    a collective: all processes must go through all weights.

    Args:
        model: any module; :func:`module_weights` says which matrices each of its modules holds.
        selection: which weights are analysed.
        values: whether values are needed; if not, sharded and sparse weights are neither gathered nor made dense, and
            their matrices are on the meta device.

    Returns:
        One item per weight. Matrices are views of the parameters if possible, and carry no gradient.

    Raises:
        TypeError: ``model`` is not a module, or ``selection`` not a :class:`Selection`.
        ValueError: a pattern of ``selection`` matches no layer (raised at the first item).

    Example:
        >>> net = nn.Sequential(nn.Embedding(10, 4), nn.Linear(4, 3))
        >>> [(layer.name, layer.kind, layer.reason[:10]) for layer in layer_weights(net)]
        [('0', 'embedding', 'embeddings'), ('1', 'linear', '')]
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"Expected argument `model` to be a torch.nn.Module, but got {type(model).__name__}.")
    if not isinstance(selection, Selection):
        raise TypeError(f"Expected argument `selection` to be a Selection(...), but got {selection!r}.")
    return _checked(model, selection, values)


def _checked(model: nn.Module, selection: Selection, values: bool) -> Iterator[LayerWeight]:
    if selection.include or selection.exclude or selection.layout:
        everything = replace(selection, include=(), exclude=())
        selection.check_patterns(layer.name for layer in _layers(model, everything, values=False))
    yield from _layers(model, selection, values)


def _layers(model: nn.Module, selection: Selection, values: bool) -> Iterator[LayerWeight]:
    readers: tuple[_Reader, ...] = (claimed_weights,)
    if selection.low_rank_products:
        readers = (low_rank_products, claimed_weights)
    tied = _held_besides_embeddings(model)
    seen: set[int] = set()
    for name, module in _named_modules(model):
        for reader in readers:
            found = _module_layers(name, module, reader, selection, values)
            layers = [layer for layer in found if not _comes_elsewhere(layer, seen, tied)]
            seen.update(id(parameter) for layer in layers for parameter in layer.parameters)
            del found
            while layers:
                yield layers.pop(0)  # while the consumer works, at most one module's weights are kept here


def _comes_elsewhere(layer: LayerWeight, seen: set[int], tied: set[int]) -> bool:
    others = seen | tied if layer.kind == "embedding" else seen
    known = [id(parameter) in others for parameter in layer.parameters if parameter.ndim >= 2]
    return any(known) and (all(known) or layer.kind != "low-rank product")  # products may have one factor in common


def _held_besides_embeddings(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that modules other than embeddings hold."""
    modules = (module for name, module in model.named_modules() if not is_parametrisation(name))
    others = (module for module in modules if kind_of(module) != "embedding")
    return {id(parameter) for module in others for parameter in own_parameters(module)}


def _named_modules(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield modules with the names that they would have without wrappers; parametrisations belong to their owners."""
    parallel: set[str] = set()
    for name, module in model.named_modules():
        if isinstance(module, (DataParallel, DistributedDataParallel)):
            parallel.add(f"{name}.module".lstrip("."))
        if is_parametrisation(name):
            continue
        parts = name.split(".")
        kept = [
            part
            for index, part in enumerate(parts)
            if part not in WRAPPERS and ".".join(parts[: index + 1]) not in parallel
        ]
        yield ".".join(kept), module


def _module_layers(
    name: str, module: nn.Module, reader: _Reader, selection: Selection, values: bool
) -> list[LayerWeight]:
    """Return the weights of one module that one reader finds, with the reasons for those that are left out."""
    if any(is_lazy(tensor) for tensor in _tensors(module)):
        return [] if reader is low_rank_products else _uninitialised(name, module)
    try:
        if reader is low_rank_products and not holds_factors(module):
            return []
        read = modules_read(module)
        if not any(must_be_gathered(tensor) for part in read for tensor in _tensors(part)):
            return _read(name, module, reader, selection, {}, values=values)
        shapes = _shapes(name, module, reader, selection)
        if shapes is not None and (not values or all(layer.reason for layer in shapes)):
            return shapes
        with gathered(read, values=values) as originals:
            return _read(name, module, reader, selection, originals, values=values)
    except Exception as error:
        return [_skipped(name, kind_of(module), (), own_parameters(module), not_computed(error))]


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    for held in (*module._parameters.values(), *module._buffers.values()):
        if held is not None:
            yield held


def _shapes(name: str, module: nn.Module, reader: _Reader, selection: Selection) -> list[LayerWeight] | None:
    """Return the weights on the meta device; None if they cannot be computed without values."""
    try:
        with gathered(modules_read(module), values=False) as originals:
            return _read(name, module, reader, selection, originals, values=False)
    except Exception:
        return None


def _read(
    name: str, module: nn.Module, reader: _Reader, selection: Selection, originals: dict[int, Tensor], *, values: bool
) -> list[LayerWeight]:
    with torch.no_grad(), evaluated_parametrisations(module):
        opaque = next((p for p in own_parameters(module) if _is_opaque(p)), None)
        if opaque is not None and not says_itself(module):
            reason = f"it is quantised, or otherwise not stored as plain numbers ({type(opaque).__name__})"
            weights = [
                ModuleWeight("", kind_of(module), NO_MATRICES, own_parameters(module), tuple(opaque.shape), reason)
            ]
        else:
            weights = list(reader(module))
        layers = [_layer(name, module, weight, originals, selection, values) for weight in weights]
    if len({layer.name for layer in layers}) < len(layers):
        raise ValueError(f"two weights have one name: {', '.join(layer.name for layer in layers)}")
    return layers


def _layer(
    module_name: str,
    module: nn.Module,
    weight: ModuleWeight,
    originals: dict[int, Tensor],
    selection: Selection,
    values: bool,
) -> LayerWeight:
    name = ".".join(part for part in (module_name, weight.suffix) if part) or "weight"
    parameters = tuple(originals.get(id(parameter), parameter) for parameter in weight.parameters)
    shape = weight.shape or _stored_shape(module, weight)
    if weight.reason or factor_reason(name):
        return _skipped(name, weight.kind, shape, parameters, weight.reason or factor_reason(name))
    matrices, kind, layout, remark = weight.matrices.detach(), weight.kind, weight.layout, weight.remark
    said = selection.layout_of(name)
    held = held_weights(module).get(weight.suffix or "weight") if said else None
    if held is not None and tuple(held.value.shape) == shape:
        try:
            kind, matrices = laid_out(held.value.detach(), said)
        except ValueError as error:  # the layout does not fit
            return _skipped(name, kind, shape, parameters, str(error))
        layout, remark = said, ""
    elsewhere = is_sharded(matrices)  # it was computed from parameters of other modules
    matrices = stack(full_tensor(matrices, values=values) if elsewhere else matrices)
    has_values = values or not (originals or elsewhere)
    reason = _refusal(selection, name, module, kind, matrices, shape) or _unreadable(matrices, has_values)
    if not layout:
        itself = says_itself(module)
        layout = _claimed_layout(shape, matrices, parameters) if itself else usual_layout(kind, len(shape))
    if reason:
        return _skipped(name, kind, shape, parameters, reason)._replace(layout=layout)
    return LayerWeight(name, kind, shape, matrices, parameters, rank=weight.rank, remark=remark, layout=layout)


def _claimed_layout(shape: tuple[int, ...], matrices: Tensor, parameters: tuple[Tensor, ...]) -> str:
    """Return the layout of a weight that a module gives itself, if its last two stored dimensions are the matrices'."""
    if len(shape) < 2 or matrices.shape[-2:] != shape[-2:]:
        return ""
    pairs = matrices.is_complex() and shape[0] == 2 and not any(parameter.is_complex() for parameter in parameters)
    return "c" + "b" * (len(shape) - 3) + "io" if pairs else usual_layout("parameter", len(shape))


def _refusal(
    selection: Selection, name: str, module: nn.Module, kind: str, matrices: Tensor, shape: tuple[int, ...]
) -> str | None:
    if selection.low_rank_products and lone_factor(name, kind):
        return lone_factor(name, kind)
    classes = tuple(cls.__name__ for cls in type(module).__mro__ if getattr(nn, cls.__name__, None) is cls)
    return selection.refusal(name, kind, matrices.shape, shape=shape, classes=classes)


def _stored_shape(module: nn.Module, weight: ModuleWeight) -> tuple[int, ...]:
    stored = getattr(module, weight.suffix or "weight", None)
    return tuple(stored.shape) if isinstance(stored, Tensor) else tuple(weight.matrices.shape)


def _is_opaque(parameter: Tensor) -> bool:
    """Whether a parameter's numbers are in a wrapper's inner tensors (torchao) or packed (bitsandbytes)."""
    return hasattr(parameter, "__tensor_flatten__") or getattr(parameter, "quant_state", None) is not None


def _unreadable(matrices: Tensor, has_values: bool) -> str | None:
    if not (matrices.is_floating_point() or matrices.is_complex()):
        return f"the weights are of type {matrices.dtype}, not real or complex numbers"
    if matrices.dtype.itemsize < 2:
        return f"it is quantised: its type, {matrices.dtype}, is of use only with its scales"
    if matrices.is_meta and has_values:
        return "the weights are on the meta device, without values"
    return None


def _uninitialised(name: str, module: nn.Module) -> list[LayerWeight]:
    if isinstance(module, _NormBase):
        return []
    reason = "it is not initialised yet: the module takes its shape from the first forward pass"
    return [_skipped(name, kind_of(module), (), (), reason)]


def _skipped(name: str, kind: str, shape: tuple[int, ...], parameters: tuple[Tensor, ...], reason: str) -> LayerWeight:
    return LayerWeight(name or "weight", kind, shape, NO_MATRICES, parameters, reason)
