"""Tells which weight matrices a single module holds; open for users' own classes."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial, singledispatch
from typing import Protocol, cast, runtime_checkable

from torch import Tensor, nn

from lightning_farms.analysis._layout_text import BATCH, laid_out, usual_layout
from lightning_farms.analysis.weights._foreign import foreign_weights
from lightning_farms.analysis.weights._layouts import (
    class_layout,
    has_shared_bias,
    holds_matrices,
    is_norms_factor,
    is_position_grid,
    parameter_layout,
    weight_layout,
)
from lightning_farms.analysis.weights._matrices import (
    GRU_GATES,
    LSTM_GATES,
    PROJECTIONS,
    convolution_matrices,
    stack,
    transposed_convolution_matrices,
)
from lightning_farms.analysis.weights._parametrised import HeldWeight, held_weights
from lightning_farms.analysis.weights._stacked_experts import experts_of, unstacked
from lightning_farms.analysis.weights.layer_weight import NO_MATRICES, ModuleWeight

_CLASS_KINDS: tuple[tuple[tuple[type[nn.Module], ...], str], ...] = (
    ((nn.Linear,), "linear"),
    ((nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), "transposed convolution"),
    ((nn.Conv1d, nn.Conv2d, nn.Conv3d), "convolution"),
    ((nn.Embedding, nn.EmbeddingBag), "embedding"),
    ((nn.MultiheadAttention,), "attention"),
    ((nn.RNNBase, nn.RNNCellBase), "recurrent"),
)

_BIAS = re.compile(r"(.*_)?bias")


@runtime_checkable
class HasSpectralWeights(Protocol):
    """A module that tells which matrices it holds by a method of its own, which needs no import from here."""

    def spectral_weights(self) -> Iterable[tuple[str, Tensor, tuple[Tensor, ...]]]:
        """Yield (name, matrices of shape (..., m, n), parameters that hold them or go with them)."""


@singledispatch
def module_weights(module: nn.Module) -> Iterator[ModuleWeight]:
    """Yield the weight matrices that a module itself holds (not its children).

    PyTorch's own classes are known, and by their names ``Conv1D`` of transformers, ``SpectralConv`` of neuraloperator
    and of the original FNO, AFNO's mixer, and convolutions of other packages (``DeformConv2d``, spconv's
    ``SubMConv3d``). In any other class, every parameter of two or more dimensions, the last two of which are at least
    2, is a batch of matrices over its last two dimensions, unless it has a kernel's shape: (outputs, inputs, 3, 3),
    which the row says, or (outputs, inputs, 1, 1). Parameters called ``bias`` or ``..._bias`` are left out.

    Add a class of your own either by a function registered for the class (and its subclasses)::

        @module_weights.register
        def _(module: MyLayer):
            yield ModuleWeight("", "linear", module.w.reshape(1, 64, 32), (module.w, module.bias))

    or by a method, which takes precedence over a function and needs no import::

        class MyLayer(nn.Module):
            def spectral_weights(self):
                yield "w", self.w.reshape(64, 32), (self.w, self.bias)

    Both run without gradient, on full tensors even if the module's own parameters are sharded, and may compute (a
    product, a complex tensor from real pairs); an error that they raise is the reason in the weight's row. They may
    also use parameters of children, which then belong to the weight.

    Args:
        module: the module.

    Returns:
        One item per weight.

    Example:
        >>> [(w.suffix, tuple(w.matrices.shape)) for w in module_weights(nn.Conv2d(3, 8, 5))]
        [('', (25, 8, 3))]
        >>> [w.suffix for w in module_weights(nn.GRUCell(4, 3))][:3]
        ['weight_ih.r', 'weight_ih.z', 'weight_ih.n']
    """
    foreign = foreign_weights(module)
    return _unknown_class(module) if foreign is None else foreign


def _unknown_class(module: nn.Module) -> Iterator[ModuleWeight]:
    """Yield the weights of a convolution known by the name of its class, or else every matrix as it is."""
    classes = [cls.__name__ for cls in type(module).__mro__ if issubclass(cls, nn.Module) and cls is not nn.Module]
    held = held_weights(module)
    found = {name: held[name] for name in held if not any(is_norms_factor(each, name) for each in classes)}
    layout = class_layout(module, found["weight"].value) if "weight" in found else ""
    if not layout:
        yield from _bare_weights(_apart(module, found), sole_name=True)
        return
    value, holders = found.pop("weight")
    bias = found.pop("bias").parameters if "bias" in found else ()
    kind, matrices = laid_out(value, layout)
    yield ModuleWeight("", kind, matrices, holders + bias, tuple(value.shape), layout=layout)
    yield from _bare_weights(found)


def claimed_weights(module: nn.Module) -> Iterator[ModuleWeight]:
    """Yield the weights that the module gives itself, or else those that are registered for its class."""
    if not says_itself(module):
        yield from module_weights(module)
        return
    for name, matrices, parameters in cast(HasSpectralWeights, module).spectral_weights():
        yield ModuleWeight(name, "parameter", matrices, tuple(parameters))


def says_itself(module: nn.Module) -> bool:
    """Whether a module has the method of :class:`HasSpectralWeights`; a submodule of that name does not count."""
    name = HasSpectralWeights.spectral_weights.__name__
    return callable(getattr(type(module), name, None)) or callable(vars(module).get(name))


def kind_of(module: nn.Module) -> str:
    """Return the kind of a module's weight by its class; ``"parameter"`` for classes that are not PyTorch's."""
    return next((kind for classes, kind in _CLASS_KINDS if isinstance(module, classes)), "parameter")


@module_weights.register(nn.LayerNorm)
@module_weights.register(nn.RMSNorm)
def _no_matrix(module: nn.Module) -> Iterator[ModuleWeight]:
    """Yield nothing: factors of single features are no matrix, whatever their shape."""
    yield from ()


@module_weights.register(nn.Linear)
@module_weights.register(nn.Embedding)
@module_weights.register(nn.EmbeddingBag)
def _one_matrix(module: nn.Linear | nn.Embedding | nn.EmbeddingBag) -> Iterator[ModuleWeight]:
    return _main_weight(module, stack)


@module_weights.register(nn.Conv1d)
@module_weights.register(nn.Conv2d)
@module_weights.register(nn.Conv3d)
def _convolution(module: nn.Conv1d | nn.Conv2d | nn.Conv3d) -> Iterator[ModuleWeight]:
    return _main_weight(module, partial(convolution_matrices, groups=module.groups), module.groups)


@module_weights.register(nn.ConvTranspose1d)
@module_weights.register(nn.ConvTranspose2d)
@module_weights.register(nn.ConvTranspose3d)
def _transposed_convolution(
    module: nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d,
) -> Iterator[ModuleWeight]:
    return _main_weight(module, partial(transposed_convolution_matrices, groups=module.groups), module.groups)


def _main_weight(module: nn.Module, to_matrices: Callable[[Tensor], Tensor], groups: int = 1) -> Iterator[ModuleWeight]:
    """Yield the weight with its bias, and then the other tensors that a subclass holds."""
    found = held_weights(module)
    if "weight" not in found and any(module.weight is parameter for parameter in module.parameters()):
        yield from _bare_weights(found)  # the weight is that of a child, which has its own turn (adapters' layers)
        return
    value, holders = found.pop("weight") if "weight" in found else HeldWeight(cast(Tensor, module.weight))
    bias = found.pop("bias").parameters if "bias" in found else ()
    layout = usual_layout(kind_of(module), value.ndim) + (f"/{groups}" if groups > 1 else "")
    yield ModuleWeight("", kind_of(module), to_matrices(value), holders + bias, tuple(value.shape), layout=layout)
    yield from _bare_weights(found)


@module_weights.register
def _attention(module: nn.MultiheadAttention) -> Iterator[ModuleWeight]:
    """Yield queries, keys and values separately, even if they are rows of one parameter; ``out_proj`` is a child."""
    found = held_weights(module)
    bias = found.pop("in_proj_bias").parameters if "in_proj_bias" in found else ()
    if "in_proj_weight" in found:
        yield from _rows_apart("in_proj_weight", found.pop("in_proj_weight"), PROJECTIONS, bias, "attention")
    for name in ("q_proj_weight", "k_proj_weight", "v_proj_weight"):
        if name in found:
            yield from _rows_apart(name, found.pop(name), (), bias, "attention")
    yield from _bare_weights(found)


@module_weights.register(nn.RNNBase)
@module_weights.register(nn.RNNCellBase)
def _recurrent(module: nn.RNNBase | nn.RNNCellBase) -> Iterator[ModuleWeight]:
    """Yield every gate's matrix of every layer and direction, from the input (ih) and from the state (hh)."""
    found = held_weights(module)
    gates: tuple[str, ...] = ()
    if isinstance(module, (nn.LSTM, nn.LSTMCell)):
        gates = LSTM_GATES
    elif isinstance(module, (nn.GRU, nn.GRUCell)):
        gates = GRU_GATES
    for name in [name for name in found if name.startswith("weight_")]:
        bias = found.pop(name.replace("weight", "bias"), None)
        projection = name.startswith("weight_hr")
        parts = () if projection else gates
        yield from _rows_apart(name, found.pop(name), parts, bias.parameters if bias else (), "recurrent")
    yield from _bare_weights(found)


def _rows_apart(
    name: str, held: HeldWeight, parts: tuple[str, ...], bias: tuple[Tensor, ...], kind: str
) -> Iterator[ModuleWeight]:
    """Yield the matrices that are stacked by rows in a parameter, or the whole of it if there are no parts."""
    for part, matrix in zip(parts or ("",), held.value.chunk(len(parts) or 1), strict=True):
        suffix = f"{name}.{part}" if part else name
        yield ModuleWeight(suffix, kind, stack(matrix), held.parameters + bias, tuple(matrix.shape))


def _apart(module: nn.Module, found: Mapping[str, HeldWeight]) -> dict[str, HeldWeight]:
    """Separate experts that are stacked in one matrix, if the module tells how many there are."""
    apart = dict(found)
    for name, held in found.items():
        matrices = unstacked(held.value, name, experts_of(module, name))
        if matrices is not None:
            apart[name] = held._replace(value=matrices)
    return apart


def _bare_weights(found: Mapping[str, HeldWeight], *, sole_name: bool = False) -> Iterator[ModuleWeight]:
    """Yield every tensor that holds matrices, together with its bias, which its name tells."""
    matrices = [name for name, held in found.items() if holds_matrices(held.value.shape)]
    names = [name for name in matrices if not _BIAS.fullmatch(name)]
    for name in names:
        value, parameters = found[name]
        for bias in (name.replace("weight", "bias"), f"{name}_bias"):  # of weight_ih_l1; of fused experts
            if bias != name and bias in found and found[bias].value.ndim < value.ndim:
                parameters += found[bias].parameters
        suffix = "" if sole_name and names == ["weight"] else name  # a sole `weight` bears its module's name
        of_all = found["bias"].value if name == "weight" and "bias" in found else None
        yield _bare_weight(suffix, name, value, parameters, of_all)


def _bare_weight(
    suffix: str, name: str, value: Tensor, parameters: tuple[Tensor, ...], bias: Tensor | None
) -> ModuleWeight:
    """Return a weight by the table of layouts, or else as a batch of matrices."""
    shared = bias is not None and has_shared_bias(value.shape, bias.shape)
    known = None
    if name == "weight" and (value.ndim > 3 or shared):
        known = weight_layout("", value, bias if shared else None)
    known = known or parameter_layout("", name, value)
    shape = tuple(value.shape)
    if is_position_grid(name, shape):
        return ModuleWeight(suffix, "parameter", stack(value.flatten(2)), parameters, shape)
    if known is not None and known.reason:
        return ModuleWeight(suffix, "parameter", NO_MATRICES, parameters, shape, known.reason)
    if known is None or known.layout == BATCH:
        remark = "" if known is None else known.remark
        return ModuleWeight(suffix, "parameter", stack(value), parameters, shape, remark=remark)
    kind, matrices = laid_out(value, known.layout)
    return ModuleWeight(suffix, kind, matrices, parameters, shape, layout=known.layout, remark=known.remark)
