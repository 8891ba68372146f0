"""Which weight matrices a module holds, and which layer each parameter belongs to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import singledispatch
from typing import NamedTuple, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm


class ModuleWeight(NamedTuple):
    """One weight of one module, as matrices.

    Attributes:
        suffix: name within the module; empty where the module has one weight.
        kind: ``"linear"``, ``"convolution"``, ``"transposed convolution"`` or ``"parameter"``.
        matrices: (P, m, n), real or complex: one matrix, the kernel positions of a convolution, or a batch.
        parameters: the parameters that hold this weight and those that go with it (its bias).
    """

    suffix: str
    kind: str
    matrices: Tensor
    parameters: tuple[Tensor, ...]


class LayerWeight(NamedTuple):
    """A weight of a model: its layer's name, kind, shape as stored, matrices (P, m, n), and parameters."""

    name: str
    kind: str
    shape: tuple[int, ...]
    matrices: Tensor
    parameters: tuple[Tensor, ...]


@runtime_checkable
class HasSpectralWeights(Protocol):
    """A module that says itself which matrices it holds; needs no import from here."""

    def spectral_weights(self) -> Iterable[tuple[str, Tensor, tuple[Tensor, ...]]]:
        """Yield (name, matrices of shape (..., m, n), parameters that hold them or go with them)."""


@singledispatch
def module_weights(module: nn.Module) -> Iterator[ModuleWeight]:
    """Weight matrices that a module itself holds (not its children).

    Register a function for a class of your own with ``@module_weights.register``, or give the class a method
    ``spectral_weights`` (see :class:`HasSpectralWeights`), which wins. What is not registered: every parameter of two
    or more dimensions, the last two of which are at least 2, is a batch of matrices of its last two dimensions.

    Args:
        module: the module.

    Yields:
        One item a weight.

    Example:
        >>> [w.matrices.shape for w in module_weights(nn.Conv2d(3, 8, 5))]
        [torch.Size([25, 8, 3])]
    """
    found = [weight for weight in _own_weights(module) if weight[1].ndim >= 2 and min(weight[1].shape[-2:]) >= 2]
    sole = [name for name, _, _ in found] == ["weight"]
    biases = {name: bias for name, bias in module.named_parameters(recurse=False) if bias.ndim == 1}
    for name, weight, parameters in found:
        bias = biases.get(name.replace("weight", "bias"))  # weight_ih_l1 and bias_ih_l1
        own = parameters if bias is None else (*parameters, bias)
        yield ModuleWeight("" if sole else name, "parameter", _batch(weight), own)


@module_weights.register
def _linear(module: nn.Linear) -> Iterator[ModuleWeight]:
    yield ModuleWeight("", "linear", _batch(_weight(module)), _own_parameters(module))


@module_weights.register(nn.Embedding)
@module_weights.register(nn.EmbeddingBag)
@module_weights.register(nn.LayerNorm)
@module_weights.register(nn.RMSNorm)
def _no_matrix(module: nn.Module) -> Iterator[ModuleWeight]:
    """Tables of vectors, and factors of single features, are no matrices, whatever their shape."""
    yield from ()


@module_weights.register(nn.Conv1d)
@module_weights.register(nn.Conv2d)
@module_weights.register(nn.Conv3d)
def _convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Iterator[ModuleWeight]:
    per_group = _per_group(_weight(module), module.groups)
    yield ModuleWeight("", "convolution", _kernel_positions(per_group), _own_parameters(module))


@module_weights.register(nn.ConvTranspose1d)
@module_weights.register(nn.ConvTranspose2d)
@module_weights.register(nn.ConvTranspose3d)
def _transposed_convolution(
    module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d,
) -> Iterator[ModuleWeight]:
    per_group = _per_group(_weight(module), module.groups).transpose(1, 2)
    yield ModuleWeight("", "transposed convolution", _kernel_positions(per_group), _own_parameters(module))


def _weight(module: nn.Module) -> Tensor:
    """The weight as the next forward pass has it: a hook may compute it anew from the parameters just before."""
    for hook in module._forward_pre_hooks.values():
        if isinstance(hook, WeightNorm) and hook.name == "weight":
            return cast(Tensor, hook.compute_weight(module))
        if isinstance(hook, BasePruningMethod) and hook._tensor_name == "weight":
            return cast(Tensor, hook.apply_mask(module))
        if isinstance(hook, SpectralNorm) and hook.name == "weight":
            return hook.compute_weight(module, do_power_iteration=False)
    return cast(Tensor, module.weight)


def _per_group(weight: Tensor, groups: int) -> Tensor:
    """(channels, ...) -> (groups, channels / groups, ...)."""
    per_group: Tensor = weight.unflatten(0, (groups, weight.shape[0] // groups))
    return per_group


def _kernel_positions(weight: Tensor) -> Tensor:
    """(groups, O, I, *kernel) -> (groups * positions, O, I)."""
    return weight.flatten(3).permute(0, 3, 1, 2).flatten(0, 1)


def _batch(matrices: Tensor) -> Tensor:
    return matrices.flatten(0, -3) if matrices.ndim > 2 else matrices.unsqueeze(0)


def _own_weights(module: nn.Module) -> Iterator[tuple[str, Tensor, tuple[Tensor, ...]]]:
    """(name, effective value, parameters that hold it) of what the module itself holds, parametrised or not."""
    for name, parameter in module.named_parameters(recurse=False):
        yield name, parameter, (parameter,)
    if parametrize.is_parametrized(module):
        for name, originals in module.parametrizations.items():  # type: ignore[union-attr, operator]
            yield name, getattr(module, name), tuple(originals.parameters())


def _own_parameters(module: nn.Module) -> tuple[Tensor, ...]:
    """Parameters held by the module itself, the originals where one is parametrised."""
    own = list(module.parameters(recurse=False))
    if parametrize.is_parametrized(module):
        own.extend(module.parametrizations.parameters())  # type: ignore[union-attr]
    return tuple(own)


def _is_parametrisation(name: str) -> bool:
    return "parametrizations" in name.split(".")


def layer_weights(model: nn.Module) -> Iterator[LayerWeight]:
    """All weight matrices of a model, in the order of its modules; a weight shared by two modules comes once.

    Args:
        model: the model; ``_orig_mod`` of a compiled model is left out of the names.

    Yields:
        One item a weight. Matrices are views of the parameters where that is possible, and carry no gradient.
    """
    seen: set[int] = set()
    for module_name, module in model.named_modules():
        if _is_parametrisation(module_name) or _uninitialised(module):
            continue
        with torch.no_grad(), _evaluated_parametrisations(module):
            layers = [_named(module_name, module, weight) for weight in _weights(module)]
        new = [layer for layer in layers if not any(p.ndim >= 2 and id(p) in seen for p in layer.parameters)]
        seen.update(id(p) for layer in layers for p in layer.parameters)
        yield from new


@contextmanager
def _evaluated_parametrisations(module: nn.Module) -> Iterator[None]:
    """Parametrisations in evaluation mode: to read a spectral_norm weight in training mode changes its buffers."""
    parts = module.parametrizations.modules() if parametrize.is_parametrized(module) else ()  # type: ignore[union-attr]
    training = [part for part in parts if part.training]
    for part in training:
        part.training = False
    try:
        yield
    finally:
        for part in training:
            part.training = True


def _weights(module: nn.Module) -> Iterable[ModuleWeight]:
    """What the module says itself, or else what is registered for its class."""
    if not isinstance(module, HasSpectralWeights):
        return module_weights(module)
    return (ModuleWeight(name, "parameter", _batch(w), owned) for name, w, owned in module.spectral_weights())


def _uninitialised(module: nn.Module) -> bool:
    return any(isinstance(p, UninitializedParameter) for p in module.parameters(recurse=False))


def _named(module_name: str, module: nn.Module, weight: ModuleWeight) -> LayerWeight:
    name = ".".join(part for part in (*module_name.split("."), weight.suffix) if part and part != "_orig_mod")
    stored = getattr(module, weight.suffix or "weight", None)
    shape = tuple(stored.shape) if isinstance(stored, Tensor) else tuple(weight.matrices.shape)
    return LayerWeight(name or "weight", weight.kind, shape, weight.matrices.detach(), weight.parameters)


def parameter_layers(model: nn.Module) -> dict[Tensor, str]:
    """Which layer each parameter belongs to, for layer-wise hyperparameters.

    A weight's own parameters and its bias belong to the weight's layer; further parameters of the same module belong
    to the module's first layer. A module without a matrix (a norm) belongs to the layer before it among its siblings,
    as a BatchNorm belongs to its convolution; where its parent starts with a norm (pre-norm blocks), to the layer
    after it. Parameters that belong to no layer are left out.

    Args:
        model: the model.

    Returns:
        {parameter: name of the layer as in the report}.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> [parameter_layers(net)[p] for p in net.parameters()]
        ['0', '0', '0', '0']
    """
    owners: dict[Tensor, str] = {}
    for layer in layer_weights(model):
        for parameter in layer.parameters:
            owners.setdefault(parameter, layer.name)
    for module_name, module in model.named_modules():
        if not _is_parametrisation(module_name):
            _adopt_leftovers(module, owners)
    for module in model.modules():
        _adopt_norms(list(module.children()), owners)
    return owners


def _adopt_leftovers(module: nn.Module, owners: dict[Tensor, str]) -> None:
    own = _own_parameters(module)
    layer = next((owners[p] for p in own if p in owners), None)
    if layer is not None:
        for parameter in own:
            owners.setdefault(parameter, layer)


def _adopt_norms(siblings: list[nn.Module], owners: dict[Tensor, str]) -> None:
    """Give the parameters of siblings without a layer to the layer before (post-norm) or after (pre-norm)."""
    parameters = [list(sibling.parameters()) for sibling in siblings]
    layers = [[owners[p] for p in own if p in owners] for own in parameters]
    norms = [not found and _only_vectors(own) for own, found in zip(parameters, layers, strict=True)]
    pre_norm = next((norm for own, norm in zip(parameters, norms, strict=True) if own), False)
    for index, own in enumerate(parameters):
        if not norms[index]:
            continue
        before = [names[-1] for names in layers[:index] if names][-1:]
        after = [names[0] for names in layers[index + 1 :] if names][:1]
        for owner in (after + before if pre_norm else before + after)[:1]:
            owners.update(dict.fromkeys(own, owner))


def _only_vectors(parameters: list[nn.Parameter]) -> bool:
    return not any(isinstance(p, UninitializedParameter) or p.ndim >= 2 for p in parameters)
