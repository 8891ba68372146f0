"""What the dimensions of a kernel mean where its class is not PyTorch's: by the class's name, or by shape."""

from __future__ import annotations

import re

from torch import Tensor, nn

from lightning_farms.analysis.weights._matrices import convolution_matrices

_SPARSE = re.compile(r"(SubM|Sparse)\w*Conv\w*")
_CONVOLUTION = re.compile(r"(?!.*Transpose)\w*Conv(?P<dimensions>[123])d\w*")
_EXPERTS = re.compile(r"(.*[._])?(experts?|parallel_experts|moe|switch_mlp)([._].*)?")
_SMALL_KERNEL = 7
_LONGEST_KERNEL = 31
_FEWEST_INPUTS = 8


def class_matrices(module: nn.Module, weight: Tensor) -> Tensor | None:
    """Matrices (positions, outputs, inputs) of a convolution that is known by its class's name; None of another.

    ``...Conv2d`` (torchvision's ``DeformConv2d``, and whatever is called alike) stores (outputs, inputs / groups,
    *kernel); sparse convolutions (spconv, torchsparse) store (outputs, *kernel, inputs), or (*kernel, inputs, outputs).
    """
    names = [cls.__name__ for cls in type(module).__mro__ if cls.__module__ != "torch.nn.modules.module"]
    if any(_SPARSE.fullmatch(name) for name in names) and weight.ndim >= 3:
        outputs = getattr(module, "out_channels", None)
        kernel_first = outputs == weight.shape[-1] and outputs != weight.shape[0]
        return weight.flatten(0, -3).mT if kernel_first else kernel_between(weight)
    matches = (_CONVOLUTION.fullmatch(name) for name in names)
    dimensions = next((int(match["dimensions"]) for match in matches if match), 0)
    groups = getattr(module, "groups", 1)
    if not dimensions or weight.ndim != dimensions + 2 or not isinstance(groups, int) or weight.shape[0] % groups:
        return None
    return convolution_matrices(weight, groups)


def kernel_between(weight: Tensor) -> Tensor:
    """(O, *kernel, I) -> (positions, O, I)."""
    return weight.flatten(1, -2).transpose(0, 1)


def has_kernel_between(weight: Tensor) -> bool:
    """Whether a stored kernel's shape can be (O, *kernel, I) only: small equal dimensions before a larger last one."""
    middle = set(weight.shape[1:-1])
    return (
        weight.ndim >= 4
        and len(middle) == 1
        and 2 <= max(middle) <= _SMALL_KERNEL
        and weight.shape[-1] >= max(_FEWEST_INPUTS, max(middle) + 1)
    )


def is_batch(module: str, weight: Tensor, bias: Tensor | None) -> bool:
    """Whether a stored ``weight`` of three dimensions is a batch of matrices (of experts), no kernel.

    So it is by the module's name, by a bias for each matrix, or where its last dimension is longer than kernels are
    and there is no bias.
    """
    if weight.ndim != 3 or min(weight.shape[1:]) < 2:
        return False
    if bias is not None:
        return bias.ndim == 2 and len(bias) == len(weight)
    return _EXPERTS.fullmatch(module) is not None or weight.shape[-1] > _LONGEST_KERNEL
