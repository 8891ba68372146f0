"""Weights of other packages' modules, known by the names of their classes; the packages need not be installed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import cast

import torch
from torch import Tensor, nn

from lightning_farms.analysis.weights._matrices import complex_matrices, stack
from lightning_farms.analysis.weights._parametrised import HeldWeight, held_weights
from lightning_farms.analysis.weights.layer_weight import NO_MATRICES, ModuleWeight

SEPARABLE = "a separable spectral convolution has one number for each channel and mode, and no matrix"


def foreign_weights(module: nn.Module) -> Iterator[ModuleWeight] | None:
    """Return the weight matrices of a module whose class is known by name, or None if it is not.

    ``Conv1D`` (transformers): a linear layer stored as (inputs, outputs). ``SpectralConv...`` (neuraloperator, dense
    or factorised, and the original FNO): (inputs, outputs, *modes), a complex matrix for each mode. ``AFNO...``: pairs
    (2, blocks, inputs, outputs) of real and imaginary parts. Quantised modules of ``torch.ao`` and of other packages
    get a reason instead of matrices.
    """
    names = [cls.__name__ for cls in type(module).__mro__]
    if "Conv1D" in names and hasattr(module, "nf"):
        return _transposed_linear(module)
    if is_spectral_convolution(module):
        return _spectral_convolution(module)
    if any(name.startswith("AFNO") for name in names):
        return _afno(module)
    if any(cls.__module__.startswith("torch.ao.nn.quantized") for cls in type(module).__mro__):
        return _quantised(module)
    packed = [name for name, buffer in module.named_buffers(recurse=False) if _is_packed_weight(name, buffer)]
    return _packed(module, packed) if packed else None


def is_spectral_convolution(module: nn.Module) -> bool:
    """Whether a module is one of the Fourier layers called ``SpectralConv...``, or of neuraloperator's base of them."""
    return any(cls.__name__.startswith(("SpectralConv", "BaseSpectralConv")) for cls in type(module).__mro__)


def _transposed_linear(module: nn.Module) -> Iterator[ModuleWeight]:
    found = held_weights(module)
    value, holders = found["weight"]
    bias = found["bias"].parameters if "bias" in found else ()
    yield ModuleWeight("", "linear", stack(value.mT), holders + bias, tuple(value.shape), layout="io")


def _spectral_convolution(module: nn.Module) -> Iterator[ModuleWeight]:
    bias = tuple(parameter for name, parameter in module.named_parameters(recurse=False) if "bias" in name)
    found = _spectral_tensors(module)
    for name, (value, holders) in found.items():
        suffix = "" if list(found) == ["weight"] else name
        if getattr(module, "separable", False):
            yield ModuleWeight(suffix, "parameter", NO_MATRICES, holders + bias, tuple(value.shape), SEPARABLE)
            continue
        spectral = _complex(value, module)
        channels = max(spectral.ndim - 2 - _dimensions(module, spectral), 0)  # on the sphere: fewer
        matrices = spectral.movedim((channels, channels + 1), (-2, -1))
        layout = "b" * channels + "io" + "b" * (spectral.ndim - channels - 2)
        layout += "c" * (value.ndim - spectral.ndim)
        yield ModuleWeight(suffix, "parameter", stack(matrices), holders + bias, tuple(value.shape), layout=layout)


def _spectral_tensors(module: nn.Module) -> dict[str, HeldWeight]:
    """Return the weights, which may be parameters, lists of parameters, or modules that make a tensor from factors."""
    found = {name: held for name, held in held_weights(module).items() if "weight" in name and held.value.ndim > 2}
    for name, child in module.named_modules():
        if callable(getattr(child, "to_tensor", None)):
            found[name] = HeldWeight(cast(Tensor, child.to_tensor()), tuple(child.parameters()))
        elif isinstance(child, nn.ParameterList) and "weight" in name:
            found.update({f"{name}.{key}": held for key, held in held_weights(child).items()})
    return found


def _complex(value: Tensor, module: nn.Module) -> Tensor:
    """Return the weight as complex numbers; a last dimension of 2 beyond the modes holds real and imaginary parts."""
    is_pair = not value.is_complex() and value.shape[-1] == 2
    if is_pair and value.ndim - 1 - _dimensions(module, value[..., 0]) >= 2:
        return complex_matrices(value.movedim(-1, 0))
    return value


def _dimensions(module: nn.Module, weight: Tensor) -> int:
    """Return the number of dimensions that hold modes."""
    modes = getattr(module, "n_modes", None)
    return len(modes) if isinstance(modes, (list, tuple)) else weight.ndim - 2


def _afno(module: nn.Module) -> Iterator[ModuleWeight]:
    found = held_weights(module)
    for name, (value, holders) in found.items():
        if name.startswith("w") and value.ndim == 4 and len(value) == 2 and not value.is_complex():
            bias = found.get(name.replace("w", "b", 1), HeldWeight(value)).parameters
            matrices, shape = complex_matrices(value), tuple(value.shape)
            yield ModuleWeight(name, "parameter", matrices, holders + bias, shape, layout="cbio")


def _quantised(module: nn.Module) -> Iterator[ModuleWeight]:
    weight = getattr(module, "weight", None)
    if callable(weight) or hasattr(module, "_all_weight_values"):
        shape = tuple(weight().shape) if callable(weight) else ()
        yield ModuleWeight("", "parameter", NO_MATRICES, (), shape, "it is quantised, and stored as packed integers")


def _packed(module: nn.Module, names: list[str]) -> Iterator[ModuleWeight]:
    for name in names:
        buffer = cast(Tensor, getattr(module, name))
        suffix = "" if len(names) == 1 else name
        reason = f"it is quantised, and stored as {buffer.dtype}"
        yield ModuleWeight(
            suffix, "parameter", NO_MATRICES, tuple(module.parameters(False)), tuple(buffer.shape), reason
        )


def _is_packed_weight(name: str, buffer: Tensor) -> bool:
    if "weight" not in name.lower() or buffer.ndim < 2:
        return False
    return not (buffer.is_floating_point() or buffer.is_complex() or buffer.dtype == torch.bool)
