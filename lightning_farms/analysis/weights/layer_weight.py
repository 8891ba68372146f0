"""A weight as a stack of matrices: of one module, and of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NO_MATRICES = torch.empty(0, 0, 0, device="cpu")
"""What stands in the place of the matrices of a weight that cannot be analysed."""


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
        layout: what the stored dimensions mean, as in ``Selection(layout=...)``; empty for the usual one of the kind.
        remark: what the report says of a weight that is analysed.
    """

    suffix: str
    kind: str
    matrices: Tensor
    parameters: tuple[Tensor, ...]
    shape: tuple[int, ...] = ()
    reason: str = ""
    rank: int | None = None
    layout: str = ""
    remark: str = ""


class LayerWeight(NamedTuple):
    """A weight of a model.

    Attributes:
        name: of the layer, unique in the model.
        kind: one of :data:`lightning_farms.analysis.KINDS`.
        shape: as stored; empty where it is not known.
        matrices: (P, m, n); (0, 0, 0) where there is a reason.
        parameters: the parameters that hold the weight, then those that go with it (its bias).
        reason: why the weight cannot be analysed or is not selected; empty where it is to be analysed.
        rank: of each matrix at most, where that is known to be less than its shape allows: the other eigenvalues,
            which are zero, are left out.
        unreadable: whether the reason is that the weight is damaged, empty, or otherwise cannot be read.
        remark: what the report says of a weight that is analysed.
        layout: what the stored dimensions mean, as in ``Selection(layout=...)``; empty where it is not known.
        steps: of a weight that was unpacked, reads how far apart the packed numbers are at each entry, (P, m, n).
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    matrices: Tensor
    parameters: tuple[Tensor, ...]
    reason: str = ""
    rank: int | None = None
    unreadable: bool = False
    remark: str = ""
    layout: str = ""
    steps: Callable[[], Tensor] | None = None

    @property
    def holders(self) -> tuple[Tensor, ...]:
        """The parameters that hold the weight: those of two or more dimensions, or else the first."""
        return tuple(p for p in self.parameters if p.ndim >= 2) or self.parameters[:1]
