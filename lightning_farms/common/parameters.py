"""Parameters as objects."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.nn.parameter import is_lazy


def identities(parameters: Iterable[Tensor]) -> list[tuple[int, bool]]:
    """What tells parameters from others while they live, and from themselves before they were initialised.

    Args:
        parameters: of a model, or of an optimizer's groups.

    Returns:
        For each its id, which a lazy one keeps, and whether it is lazy and not initialised yet.
    """
    return [(id(parameter), is_lazy(parameter)) for parameter in parameters]
