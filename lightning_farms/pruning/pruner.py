"""A network that loses weights in steps: how much of each layer, which of its weights, held from then on."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights.stored import StoredWeight, named_parameters, stored_weights
from lightning_farms.common.parameters import identities
from lightning_farms.functional import allocate_sparsity, magnitude_mask
from lightning_farms.pruning._local import reshard, whole
from lightning_farms.pruning.allocation.allocate import WeightsSubject, allocate, allocate_from_alphas
from lightning_farms.pruning.allocation.base import Allocation
from lightning_farms.pruning.allocation.controls import UniformAllocation
from lightning_farms.pruning.allocation.spectral import SpectralAllocation
from lightning_farms.pruning.layer_ratio import LayerRatio
from lightning_farms.pruning.mask_state import Masks, entries
from lightning_farms.pruning.prunable import decoder_blocks
from lightning_farms.pruning.ratios import LayerRatios

_UNIFORM = UniformAllocation()


@dataclass(frozen=True)
class TrainedLayer:
    """A weight that is pruned while it is trained.

    Attributes:
        weight: where its entries are.
        block: the repeated block of the network it belongs to; its own name where it belongs to none.
    """

    weight: StoredWeight
    block: str

    @property
    def name(self) -> str:
        """Of the layer, as in a report."""
        return self.weight.name

    @property
    def size(self) -> int:
        """Number of weights; a complex one counts once."""
        return self.weight.size


class Pruner:
    r"""Prunes a model step by step while it is trained, by magnitude within each layer; it knows no Trainer.

    At each step an allocation says how much of each layer is to go, exactly :math:`\lfloor S \sum p + 1/2 \rfloor`
    weights in all; within a layer those of least magnitude go. What has gone stays gone: a layer for which an
    allocation asks less than it has lost stays as it is, and the others share what is left in proportion to their
    scores. Weights that are not finite go last.

    Args:
        allocation: how much of each layer.
        warn: takes (kind of warning, message).

    Attributes:
        masks: which weights are pruned.
        layers: what is pruned, after :meth:`find`.
        dense: {layer: why}, of layers that are selected and cannot be pruned.
        zeros: {layer: number of its weights that are pruned}.
    """

    def __init__(self, allocation: Allocation, warn: Callable[[str, str], None]) -> None:
        self.allocation, self._warn = allocation, warn
        self.masks = Masks()
        self.layers: list[TrainedLayer] = []
        self.dense: dict[str, str] = {}
        self.zeros: dict[str, int] = {}
        self._parameters: Mapping[str, Tensor] = {}
        self._found: set[tuple[int, bool]] = set()
        self._held: list[Optimizer] = []

    # ---- the model ---------------------------------------------------------------------------------------------------

    def find(self, model: nn.Module, selection: Selection) -> None:
        """Find the layers of a model, and let the masks that there are be its own, also those of other layers.

        Args:
            model: the model.
            selection: the layers that are pruned. A weight that is computed from parameters stays dense, and so does
                one that is also a table of embeddings, unless these are selected.

        Raises:
            ValueError: a pattern of ``selection`` matches no layer.
        """
        reshard(model)
        blocks, tables = _blocks(model), set() if selection.embeddings else _tables(model)
        self.layers, self.dense, self._parameters = [], {}, named_parameters(model)
        self._found = set(identities(model.parameters()))
        for weight in stored_weights(model, selection):
            if weight.parameter is None:
                self.dense |= {weight.name: weight.reason} if weight.selected else {}
            elif id(weight.parameter) in tables:
                self.dense[weight.name] = "it is a table of embeddings too"
            elif weight.size:
                self.layers.append(TrainedLayer(weight, blocks.get(id(weight.parameter), weight.name)))
        self.masks.bind(self._parameters)
        self._count()

    def fits(self, model: nn.Module) -> bool:
        """Tell whether the model still has the parameters that were found, and no others."""
        reshard(model)
        return set(identities(model.parameters())) == self._found

    def hold(self, optimizers: Sequence[Optimizer]) -> None:
        """Keep pruned weights at zero through these optimizers' steps, in place of those held before."""
        if [id(optimizer) for optimizer in optimizers] == [id(optimizer) for optimizer in self._held]:
            return
        self._held = list(optimizers)
        self.masks.hold(optimizers)

    def release(self) -> None:
        """Leave model and optimizers alone; the weights stay as they are."""
        self.masks.release()
        self.layers, self._parameters, self._held = [], {}, []

    def keep_zeros(self) -> None:
        """Prune what is zero in the layers already, for good; a collective where parameters are sharded."""
        for layer in self.layers:
            zero = entries(self._values(layer), layer.weight).eq(0).all(0)
            if bool(zero.all()):
                self._warn("zeros", f"all weights of {layer.name} are zero: it is trained, not held at zero.")
            elif bool(zero.any()):
                self.masks.take_out(layer.weight, zero)
        self._count()

    # ---- a step ------------------------------------------------------------------------------------------------------

    def check(self, sparsity: float) -> None:
        """Raise what is wrong with an allocation that looks at no weight, such as a file: it can be known at once.

        Args:
            sparsity: that of the last step.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: it does not fit the model, or its bounds do not allow the sparsity.
        """
        if not isinstance(self.allocation, SpectralAllocation):
            self._allocated(None, sparsity)

    def plan(self, alphas: Mapping[str, float] | None, sparsity: float) -> LayerRatios:
        """How much of each layer is to be gone after the next step.

        Args:
            alphas: by the name of the layer; None: there are none.
            sparsity: of all layers together, in [0, 1).

        Returns:
            The ratios; uniform ones, with a warning, where the allocation fails.
        """
        try:
            return self._growing(self._allocated(alphas, sparsity), self.allocation)
        except Exception as error:
            self._warn("allocation", f"every layer loses the same share at this step. {error}")
            return self._growing(_without_figures(self.layers, sparsity), _UNIFORM)

    def prune(self, ratios: LayerRatios) -> None:
        """Set the weights to zero that go by a plan; a collective where parameters are sharded."""
        for layer in self.layers:
            values = entries(self._values(layer), layer.weight)
            pruned = self.masks.pruned(layer.weight).to(values.device)
            if not bool(values.isfinite().all()):
                self._warn("finite", f"weights of {layer.name} are not finite; they go last.")
            if ratios[layer.name].zeros == layer.size:
                self._warn(
                    "all", f"all weights of {layer.name} are pruned, and nothing passes: give the allocation a `cap`."
                )
            self.masks.take_out(layer.weight, thinned(values, pruned, ratios[layer.name].zeros))
        self.masks.apply()
        for optimizer in self._held:
            self.masks.clear(optimizer)
        self._count()

    def _count(self) -> None:
        self.zeros = {layer.name: int(self.masks.pruned(layer.weight).sum()) for layer in self.layers}

    def _values(self, layer: TrainedLayer) -> Tensor:
        return whole(self._parameters[layer.weight.key])

    def _allocated(self, alphas: Mapping[str, float] | None, sparsity: float) -> LayerRatios:
        allocation = replace(self.allocation, floor=min(self.allocation.floor, sparsity))
        if not isinstance(allocation, SpectralAllocation):
            return allocate(WeightsSubject(self.layers), sparsity, allocation)  # type: ignore[arg-type]
        if alphas is None:
            raise ValueError("There is no analysis to take alphas from.")
        known = {layer.name: alphas.get(layer.name, math.nan) for layer in self.layers}
        return allocate_from_alphas(known, self.layers, sparsity, allocation)

    def _growing(self, ratios: LayerRatios, allocation: Allocation) -> LayerRatios:
        """The same total, with no layer below what it has lost; the others share the rest by their scores."""
        now = self.zeros
        budget = max(ratios.zeros, sum(now.values()))
        rows = {row.name: row for row in ratios}
        fixed: set[str] = set()
        while below := {name for name, row in rows.items() if name not in fixed and row.zeros < now[name]}:
            fixed |= below
            rows |= {name: replace(rows[name], zeros=now[name], ratio=now[name] / rows[name].size) for name in below}
            free = [row for name, row in rows.items() if name not in fixed]
            left = budget - sum(rows[name].zeros for name in fixed)
            rows |= {row.name: row for row in _shared_out(free, left, allocation)}
        return replace(ratios, layers=tuple(rows.values()))

    # ---- what there is to show ---------------------------------------------------------------------------------------

    @property
    def sparsity(self) -> float:
        """Fraction of all layers' weights that is pruned; 0 where there are no layers."""
        return sum(self.zeros.values()) / max(1, sum(layer.size for layer in self.layers))

    def keys(self) -> dict[Tensor, str]:
        """The names of parameters without what wrappers put into them."""
        return {parameter: key for key, parameter in self._parameters.items()}

    def by_layer(self) -> dict[str, float]:
        """{layer: fraction of its weights that is pruned}."""
        return {layer.name: self.zeros[layer.name] / layer.size for layer in self.layers}


def thinned(values: Tensor, pruned: Tensor, zeros: int) -> Tensor:
    """Which entries are gone once so many are: those that are, and of the others the least in magnitude.

    Args:
        values: (1 or 2, E): numbers, or their real and imaginary parts.
        pruned: (E,), bool.
        zeros: how many entries are to be gone; where more are, these.

    Returns:
        (E,), bool. Of equal magnitudes the earlier goes first, and what is not finite last.
    """
    missing = zeros - int(pruned.sum())
    if missing <= 0:
        return pruned
    real = torch.view_as_real(values[0]).T if values.is_complex() else values
    if len(real) == 2:
        real = real.to(torch.promote_types(real.dtype, torch.float32))
    magnitudes = torch.hypot(*real) if len(real) == 2 else real[0].abs()
    magnitudes = magnitudes.where(magnitudes.isfinite(), torch.finfo(magnitudes.dtype).max)
    staying = (~pruned).nonzero().flatten()
    gone = ~magnitude_mask(magnitudes[staying].unsqueeze(0), missing).flatten()
    return pruned.index_fill(0, staying[gone], True)


def _shared_out(rows: Sequence[LayerRatio], zeros: int, allocation: Allocation) -> Iterable[LayerRatio]:
    """Rows that lose so many weights together, in proportion to their scores."""
    if not rows:
        return ()
    sizes = [row.size for row in rows]
    scores = torch.tensor([row.score for row in rows], dtype=torch.float64, device="cpu")
    sparsity = zeros / sum(sizes)
    found = allocate_sparsity(scores, sizes, sparsity, floor=min(allocation.floor, sparsity), cap=allocation.cap)
    parts = zip(rows, found.ratios.tolist(), found.zeros.tolist(), strict=True)
    return [replace(row, ratio=ratio, zeros=number) for row, ratio, number in parts]


def _without_figures(layers: Sequence[TrainedLayer], sparsity: float) -> LayerRatios:
    return allocate_from_alphas({layer.name: math.nan for layer in layers}, layers, sparsity, _UNIFORM)


def _blocks(model: nn.Module) -> dict[int, str]:
    """{id of a parameter: the block that holds it}, where the model repeats one."""
    try:
        blocks = decoder_blocks(model)
    except ValueError:
        return {}
    if len(blocks) < 2:
        return {}
    return {id(parameter): name for name, block in reversed(blocks.items()) for parameter in block.parameters()}


def _tables(model: nn.Module) -> set[int]:
    """Ids of the parameters that embeddings hold: a head that is tied to one is not pruned."""
    modules = (module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag)))
    return {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}
