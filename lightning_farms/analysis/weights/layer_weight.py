"""Weights as stacks of matrices: those of one module, and those of a model."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

NO_MATRICES = torch.empty(0, 0, 0, device="cpu")
"""Placeholder for the matrices of a weight that cannot be analysed."""


class ModuleWeight(NamedTuple):
    """One weight of one module, as matrices.

    Attributes:
        suffix: name within the module, unique there; empty if the module has one weight.
        kind: one of :data:`lightning_farms.analysis.KINDS`.
        matrices: (P, m, n), real or complex: one matrix, the kernel positions of a convolution, or a batch.
        parameters: the parameters that hold this weight, then those that go with it (its bias).
        shape: shape of the weight as stored; empty for that of the module's attribute ``suffix`` (or ``weight`` if
            ``suffix`` is empty), or else that of the matrices.
        reason: why the weight cannot be analysed; empty if it can.
        rank: upper bound on the rank of each matrix, if that is known to be less than its shape allows.
        layout: what the stored dimensions mean, as in ``Selection(layout=...)``; empty for the kind's usual layout.
        remark: remark in the report on a weight that is analysed.
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
        name: name of the layer, unique in the model.
        kind: one of :data:`lightning_farms.analysis.KINDS`.
        shape: shape as stored; empty if unknown.
        matrices: (P, m, n); (0, 0, 0) if there is a reason.
        parameters: the parameters that hold the weight, then those that go with it (its bias).
        reason: why the weight cannot be analysed or is not selected; empty if it is to be analysed.
        rank: upper bound on the rank of each matrix, if that is known to be less than its shape allows; the other
            eigenvalues, which are zero, are left out.
        unreadable: whether the reason is that the weight is damaged, empty, or otherwise cannot be read.
        remark: remark in the report on a weight that is analysed.
        layout: what the stored dimensions mean, as in ``Selection(layout=...)``; empty if unknown.
        steps: function that returns, for a weight that was unpacked, how far apart the packed numbers are at each
            entry, (P, m, n).
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
