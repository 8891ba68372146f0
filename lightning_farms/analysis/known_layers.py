"""Results for frozen weights, kept from one analysis for the next."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from torch import Tensor

from lightning_farms.analysis._engine.failures import Failed, Parts, attempted
from lightning_farms.analysis._engine.fingerprint import Fingerprint, fingerprints
from lightning_farms.analysis._engine.plan import Plan


class Finding(NamedTuple):
    """Results for a layer: its numbers, and its eigenvalues if these are kept."""

    parts: Parts
    eigenvalues: Tensor | None


class KnownLayers:
    """Results for weights that no trained parameter holds, kept so that they need not be decomposed again.

    Pass it to :func:`lightning_farms.analyze` (``known=``): the analysis looks here before it decomposes a layer.
    Nothing is taken on trust: a result holds for the bits of the weight (their SHA-256; on a device two sums of 64
    bits, which another weight has by chance once in 2^66), its windows, the method and the diagnostics. So any write to
    the weight is noticed, and the report is bit for bit what a new analysis would report. A layer's failure is not
    kept. Weights that are trained change at each step, so no fingerprint is taken of them.

    Example:
        >>> import torch
        >>> from lightning_farms.analysis import KnownLayers, analyze
        >>> net = torch.nn.Linear(64, 64).requires_grad_(False)
        >>> known = KnownLayers()
        >>> before = analyze(net, known=known)
        >>> len(known), analyze(net, known=known)["weight"] == before["weight"]
        (1, True)
    """

    def __init__(self) -> None:
        self._found: dict[str, tuple[tuple[Any, ...], Finding]] = {}  # each layer's last result

    def __len__(self) -> int:
        """Number of layers with a known result."""
        return len(self._found)

    def recall(self, plans: Mapping[int, Plan], question: tuple[Any, ...]) -> tuple[dict[int, Any], dict[int, Finding]]:
        """Return the keys of the frozen layers among the plans, for :meth:`keep`, and the results known for them."""
        frozen = {i: plan for i, plan in plans.items() if not any(p.requires_grad for p in plan.weight.holders)}
        taken = attempted(fingerprints, {i: plan.weight.matrices for i, plan in frozen.items()})
        if isinstance(taken, Exception):  # then no result is known
            return {}, {}
        keys = {i: _key(plan, taken[i], question) for i, plan in frozen.items()}
        stored = {i: self._found.get(frozen[i].weight.name) for i in keys}
        return keys, {i: each[1] for i, each in stored.items() if each is not None and each[0] == keys[i]}

    def keep(self, plan: Plan, key: tuple[Any, ...], finding: Finding) -> None:
        """Keep the result for a layer, unless the layer failed."""
        if not any(isinstance(part, Failed) for part in finding.parts):
            self._found[plan.weight.name] = key, finding


def _key(plan: Plan, fingerprint: Fingerprint, question: tuple[Any, ...]) -> tuple[Any, ...]:
    matrices = plan.weight.matrices
    of_weight = (plan.weight.kind, plan.weight.rank, tuple(matrices.shape), matrices.dtype, matrices.device)
    return fingerprint, of_weight, plan.windows, question
