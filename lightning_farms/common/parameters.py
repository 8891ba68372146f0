"""Identities of parameters as objects."""

from __future__ import annotations

from collections.abc import Iterable

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
