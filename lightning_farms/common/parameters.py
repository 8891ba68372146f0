"""Parameters as objects: what identifies them, and the part of one that is in this process."""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

from torch import Tensor
from torch.nn.parameter import is_lazy


def identities(parameters: Iterable[Tensor]) -> list[tuple[int, bool]]:
    """Values that distinguish living parameters from each other, and from themselves before initialisation.

    Args:
        parameters: parameters of a model, or of an optimizer's groups.

    Returns:
        The id of each parameter, which a lazy one keeps, and whether it is lazy and not initialised yet.
    """
    return [(id(parameter), is_lazy(parameter)) for parameter in parameters]


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor in this process, all of it or a DTensor's part, as a view: writing to it changes the tensor.

    Example:
        >>> import torch
        >>> local(torch.ones(2, requires_grad=True))
        tensor([1., 1.])
    """
    tensor = tensor.detach()
    return cast(Tensor, tensor.to_local()) if hasattr(tensor, "to_local") else tensor
