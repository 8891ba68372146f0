"""One weight of a module as a stack of matrices, and how stored tensors become such stacks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from lightning_farms.analysis.weights._parametrised import HeldWeight


class ModuleWeight(NamedTuple):
    """One weight of one module, as matrices.

    Attributes:
        suffix: name within the module, unique there; empty where the module has one weight.
        kind: one of :data:`lightning_farms.analysis.KINDS`.
        matrices: (P, m, n), real or complex: one matrix, the kernel positions of a convolution, or a batch.
        parameters: the parameters that hold this weight, then those that go with it (its bias).
        shape: the weight's shape as stored; empty for that of the module's attribute ``suffix`` (``weight`` where that
            is empty), or else that of the matrices.
        reason: why the weight cannot be analysed; empty where it can.
        rank: of each matrix at most, where that is known to be less than its shape allows.
    """

    suffix: str
    kind: str
    matrices: Tensor
    parameters: tuple[Tensor, ...]
    shape: tuple[int, ...] = ()
    reason: str = ""
    rank: int | None = None


PROJECTIONS = ("q", "k", "v")
"""Queries, keys and values, in the order in which ``nn.MultiheadAttention`` packs them."""

LSTM_GATES = ("i", "f", "g", "o")
GRU_GATES = ("r", "z", "n")
"""Gates of recurrent layers, in the order in which PyTorch stores them one below the other."""

NO_MATRICES = torch.empty(0, 0, 0, device="cpu")
"""What stands in the place of the matrices of a weight that cannot be analysed."""


def stack(matrices: Tensor) -> Tensor:
    """A batch of matrices with one leading dimension.

    Args:
        matrices: (..., m, n).

    Returns:
        (P, m, n), a view where possible.

    Raises:
        ValueError: fewer than two dimensions.

    Example:
        >>> stack(torch.zeros(2, 3, 5, 4)).shape
        torch.Size([6, 5, 4])
    """
    if matrices.ndim < 2:
        raise ValueError(f"Expected argument `matrices` to be (..., m, n), but got shape {tuple(matrices.shape)}.")
    return matrices.flatten(0, -3) if matrices.ndim > 2 else matrices.unsqueeze(0)


def convolution_matrices(weight: Tensor, groups: int) -> Tensor:
    """One matrix for each group and kernel position of a convolution.

    Args:
        weight: (outputs, inputs / groups, *kernel).
        groups: of the convolution.

    Returns:
        (groups * positions, outputs / groups, inputs / groups).

    Example:
        >>> convolution_matrices(torch.zeros(8, 3, 5, 5), 1).shape
        torch.Size([25, 8, 3])
    """
    return _kernel_positions(_per_group(weight, groups))


def transposed_convolution_matrices(weight: Tensor, groups: int) -> Tensor:
    """One matrix for each group and kernel position of a transposed convolution.

    Args:
        weight: (inputs, outputs / groups, *kernel).
        groups: of the convolution.

    Returns:
        (groups * positions, outputs / groups, inputs / groups).

    Example:
        >>> transposed_convolution_matrices(torch.zeros(8, 3, 5, 5), 1).shape
        torch.Size([25, 3, 8])
    """
    return _kernel_positions(_per_group(weight, groups).transpose(1, 2))


def complex_matrices(pair: Tensor) -> Tensor:
    """A complex tensor that is stored as real and imaginary part.

    Args:
        pair: (2, ...), real.

    Returns:
        (...), complex64 or complex128.

    Example:
        >>> complex_matrices(torch.tensor([[1.0], [2.0]]))
        tensor([1.+2.j])
    """
    real, imaginary = pair.to(torch.promote_types(pair.dtype, torch.float32))
    return torch.complex(real, imaginary)


def bare_weights(found: Mapping[str, HeldWeight], *, sole_name: bool = False) -> Iterator[ModuleWeight]:
    """Every tensor of two or more dimensions, the last two of which are at least 2, as a batch of matrices.

    A vector goes with the weight that has its name but for "bias" in the place of "weight".

    Args:
        found: a module's tensors by name.
        sole_name: whether a weight called ``weight`` bears its module's name, if there is no other.

    Yields:
        One item a weight.
    """
    names = [name for name, held in found.items() if held.value.ndim >= 2 and min(held.value.shape[-2:]) >= 2]
    for name in names:
        value, parameters = found[name]
        bias = found.get(name.replace("weight", "bias"))  # weight_ih_l1 and bias_ih_l1
        if bias is not None and bias.value.ndim == 1:
            parameters += bias.parameters
        suffix = "" if sole_name and names == ["weight"] else name
        yield ModuleWeight(suffix, "parameter", stack(value), parameters, tuple(value.shape))


def _per_group(weight: Tensor, groups: int) -> Tensor:
    """(channels, ...) -> (groups, channels / groups, ...)."""
    per_group: Tensor = weight.unflatten(0, (groups, weight.shape[0] // groups))
    return per_group


def _kernel_positions(weight: Tensor) -> Tensor:
    """(groups, O, I, *kernel) -> (groups * positions, O, I)."""
    return weight.flatten(3).permute(0, 3, 1, 2).flatten(0, 1)
