"""Convolutions whose windows do not overlap, as matrix products on features with channels last."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F

_ELEMENTWISE = (nn.GELU, nn.SiLU, nn.ReLU, nn.Tanh)
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


def is_untouched(module: nn.Module, *kinds: type[nn.Module]) -> bool:
    """Return whether calling a module does only what its class does, so that its weights may be used without a call.

    That does not hold for subclasses (LoRA, quantised, sharded or parametrised layers), for modules with hooks (weight
    normalisation, pruning, probes), or if `forward` was replaced.
    """
    attached = "forward" in module.__dict__ or any(getattr(module, hooks) for hooks in _HOOKS)
    return type(module) in kinds and not attached


def is_pointwise(module: nn.Module) -> bool:
    """Return whether a module is an untouched 1x1 convolution, or an untouched activation without parameters."""
    if not is_untouched(module, nn.Conv2d):
        return is_untouched(module, *_ELEMENTWISE)
    layer = cast(nn.Conv2d, module)
    return (layer.kernel_size, layer.stride, layer.padding, layer.groups) == ((1, 1), (1, 1), (0, 0), 1)


def is_patchwise(module: nn.Module, kind: type[nn.Conv2d] | type[nn.ConvTranspose2d]) -> bool:
    """Return whether a module is an untouched convolution of this kind whose windows tile the plane."""
    if not is_untouched(module, kind):
        return False
    layer = cast(nn.Conv2d, module)
    geometry = (layer.stride, layer.padding, layer.output_padding, layer.dilation, layer.groups)
    return geometry == (layer.kernel_size, (0, 0), (0, 0), (1, 1), 1)


def pointwise(layers: Iterable[nn.Module], features: Tensor) -> Tensor:
    """Apply layers that are all pointwise (see `is_pointwise`) to features (..., channels)."""
    for layer in layers:
        if isinstance(layer, nn.Conv2d):
            features = F.linear(features, layer.weight.flatten(1), layer.bias)
        else:
            features = layer(features)
    return features
