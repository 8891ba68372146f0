"""Stepwise pruning of a network in training: how much of each layer, which of its weights, and holding them at zero."""

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
from lightning_farms.functional.vectors import vector
from lightning_farms.optim.unwrap import stepping_optimizers
from lightning_farms.pruning._local import reshard, whole
from lightning_farms.pruning.allocation.allocate import WeightsSubject, allocate, allocate_from_alphas
from lightning_farms.pruning.allocation.base import Allocation
from lightning_farms.pruning.allocation.controls import UniformAllocation
from lightning_farms.pruning.allocation.spectral import SpectralAllocation
from lightning_farms.pruning.mask_state import Masks, entries
from lightning_farms.pruning.prunable import decoder_blocks
from lightning_farms.pruning.ratios import LayerRatio, LayerRatios

_UNIFORM = UniformAllocation()


@dataclass(frozen=True)
class TrainedLayer:
    """A weight that is pruned while it is trained.

    Attributes:
        weight: the weight, with the places of its entries.
        block: the repeated block of the network to which it belongs; its own name if it belongs to none.
    """

    weight: StoredWeight
    block: str

    @property
    def name(self) -> str:
        """Name of the layer, as in a report."""
        return self.weight.name

    @property
    def size(self) -> int:
        """Number of weights; a complex number counts once."""
        return self.weight.size


class Pruner:
    r"""Prunes a model step by step while it is trained, by magnitude within each layer, independently of a Trainer.

    At each step an allocation decides how much of each layer to prune, exactly :math:`\lfloor S \sum p + 1/2 \rfloor`
    weights in all; within a layer, those of least magnitude are pruned. Pruned weights stay pruned: if an allocation
    asks for less of a layer than is already pruned, the layer stays as it is, and the others share the rest in
    proportion to their scores. Weights that are not finite are pruned last.

    Args:
        allocation: decides how much of each layer to prune.
        warn: function of (kind of warning, message).

    Attributes:
        masks: masks of the pruned weights.
        layers: layers that are pruned, after :meth:`find`.
        dense: {layer: reason}, for layers that are selected but cannot be pruned.
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
        self._named = False  # whether the layers were chosen by name

    # ---- the model ---------------------------------------------------------------------------------------------------

    def find(self, model: nn.Module, selection: Selection) -> None:
        """Find the layers of a model, and bind the existing masks to it, including those of other layers.

        Args:
            model: the model.
            selection: the layers that are pruned. A weight that is computed from parameters stays dense, and so does
                one that is also an embedding table, unless embeddings are selected.

        Raises:
            ValueError: a pattern of ``selection`` matches no layer.
        """
        reshard(model)
        blocks, tables = _blocks(model), set() if selection.embeddings else _tables(model)
        self.layers, self.dense, self._parameters = [], {}, named_parameters(model)
        self._found, self._named = set(identities(model.parameters())), bool(selection.include)
        for weight in stored_weights(model, selection):
            if weight.parameter is None:
                if weight.selected:
                    self.dense[weight.name] = weight.reason
            elif id(weight.parameter) in tables:
                self.dense[weight.name] = "it is a table of embeddings too"
            elif weight.size:
                self.layers.append(TrainedLayer(weight, blocks.get(id(weight.parameter), weight.name)))
        self.masks.bind(self._parameters)
        self._count()

    def fits(self, model: nn.Module) -> bool:
        """Whether the model still has exactly the parameters that were found."""
        reshard(model)
        return set(identities(model.parameters())) == self._found

    def hold(self, optimizers: Sequence[Optimizer]) -> None:
        """Keep pruned weights at zero through the steps of these optimizers, which replace those held before."""
        if [id(optimizer) for optimizer in optimizers] == [id(optimizer) for optimizer in self._held]:
            return
        self._held = list(optimizers)
        self.masks.hold(optimizers)

    def release(self) -> None:
        """Release model and optimizers; the weights stay as they are."""
        self.masks.release()
        self.layers, self._parameters, self._held = [], {}, []

    def keep_zeros(self) -> None:
        """Prune weights that are already zero for good; a collective operation if parameters are sharded."""
        for layer in self.layers:
            zero = entries(self._values(layer), layer.weight).eq(0).all(0)
            if bool(zero.all()):
                self._warn(
                    "zeros", f"all weights of {layer.name} are zero, so that it is trained and not held at zero."
                )
            elif bool(zero.any()):
                self.masks.take_out(layer.weight, zero)
        self._count()

    # ---- a step ------------------------------------------------------------------------------------------------------

    def check(self, sparsity: float) -> None:
        """Raise errors of an allocation that looks at no weight, such as a file, early.

        Args:
            sparsity: sparsity of the last step.

        Raises:
            FileNotFoundError: there is no such file.
            ValueError: the allocation does not fit the model, or its bounds do not allow the sparsity.
        """
        if not isinstance(self.allocation, SpectralAllocation):
            self._allocated(None, sparsity)

    def plan(self, alphas: Mapping[str, float] | None, sparsity: float) -> LayerRatios:
        """Compute how much of each layer is to be pruned after the next step.

        Args:
            alphas: alphas by the name of the layer; None: there are none.
            sparsity: sparsity of all layers together, in [0, 1).

        Returns:
            The ratios; if the allocation fails, uniform ones, with a warning.
        """
        try:
            return self._growing(self._allocated(alphas, sparsity), self.allocation)
        except Exception as error:
            self._warn("allocation", f"every layer loses the same share at this step. {error}")
            return self._growing(_without_figures(self.layers, sparsity), _UNIFORM)

    def prune(self, ratios: LayerRatios) -> None:
        """Set weights to zero according to a plan; a collective operation if parameters are sharded."""
        self._warn_of_untrained(ratios)
        for layer in self.layers:
            values = entries(self._values(layer), layer.weight)
            pruned = self.masks.pruned(layer.weight).to(values.device)
            if not bool(values.isfinite().all()):
                self._warn("finite", f"weights of {layer.name} are not finite, and are pruned last.")
            if ratios[layer.name].zeros == layer.size:
                self._warn(
                    "all",
                    f"all weights of {layer.name} are pruned, so that nothing passes through it. Give the "
                    "allocation a `cap`.",
                )
            self.masks.take_out(layer.weight, thinned(values, pruned, ratios[layer.name].zeros))
        self.masks.apply()
        for optimizer in self._held:
            self.masks.clear(optimizer)
        self._count()

    def _warn_of_untrained(self, ratios: LayerRatios) -> None:
        """Warn if layers lose weights that nothing trains, such as a teacher's, unless they were chosen by name."""
        stepping = [each for optimizer in self._held for each in stepping_optimizers(optimizer)]
        stepped = [parameter for each in stepping for group in each.param_groups for parameter in group["params"]]
        trained = {id(parameter) for parameter in stepped if parameter.requires_grad}
        untrained = [
            layer.name
            for layer in self.layers
            if id(layer.weight.parameter) not in trained and ratios[layer.name].zeros > self.zeros[layer.name]
        ]
        if self._held and untrained and not self._named:
            listed = ", ".join(untrained[:4]) + (", ..." if len(untrained) > 4 else "")
            self._warn(
                "untrained",
                f"layers are pruned that no optimizer trains at this step, {len(untrained)} in all: {listed}. If they "
                "are not meant (a teacher, a network in the loss), leave them out: "
                f"`layers=Selection(exclude=[{untrained[0]!r}, ...])`.",
            )

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
        """Keep the total, but no layer below what is already pruned; the others share the rest by their scores."""
        budget = max(ratios.zeros, sum(self.zeros.values()))
        rows = {row.name: row for row in ratios}
        fixed: set[str] = set()
        while below := {name for name, row in rows.items() if name not in fixed and row.zeros < self.zeros[name]}:
            fixed |= below
            for name in below:
                rows[name] = replace(rows[name], zeros=self.zeros[name], ratio=self.zeros[name] / rows[name].size)
            free = [row for name, row in rows.items() if name not in fixed]
            left = budget - sum(rows[name].zeros for name in fixed)
            rows |= {row.name: row for row in _shared_out(free, left, allocation)}
        return replace(ratios, layers=tuple(rows.values()))

    # ---- results to show ---------------------------------------------------------------------------------------------

    @property
    def sparsity(self) -> float:
        """Fraction of all layers' weights that is pruned; 0 if there are no layers."""
        return sum(self.zeros.values()) / max(1, sum(layer.size for layer in self.layers))

    def keys(self) -> dict[Tensor, str]:
        """The names of the parameters, without parts that wrappers insert."""
        return {parameter: key for key, parameter in self._parameters.items()}

    def by_layer(self) -> dict[str, float]:
        """{layer: fraction of its weights that is pruned}."""
        return {layer.name: self.zeros[layer.name] / layer.size for layer in self.layers}


def thinned(values: Tensor, pruned: Tensor, zeros: int) -> Tensor:
    """Mark `zeros` entries to prune: those that are pruned already, and of the others the least in magnitude.

    Args:
        values: (1 or 2, E): numbers, or their real and imaginary parts.
        pruned: (E,), bool, the entries that are pruned already.
        zeros: number of entries to be pruned; if more are pruned already, these remain.

    Returns:
        (E,), bool. Of equal magnitudes the earlier is pruned first; entries that are not finite are pruned last.
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
    """Rows that lose the given number of weights together, in proportion to their scores."""
    if not rows:
        return ()
    sizes = [row.size for row in rows]
    scores = vector(row.score for row in rows)
    sparsity = zeros / sum(sizes)
    found = allocate_sparsity(scores, sizes, sparsity, floor=min(allocation.floor, sparsity), cap=allocation.cap)
    parts = zip(rows, found.ratios.tolist(), found.zeros.tolist(), strict=True)
    return [replace(row, ratio=ratio, zeros=number) for row, ratio, number in parts]


def _without_figures(layers: Sequence[TrainedLayer], sparsity: float) -> LayerRatios:
    return allocate_from_alphas({layer.name: math.nan for layer in layers}, layers, sparsity, _UNIFORM)


def _blocks(model: nn.Module) -> dict[int, str]:
    """{id of a parameter: the block that holds it}, if the model has repeated blocks."""
    try:
        blocks = decoder_blocks(model)
    except ValueError:
        return {}
    if len(blocks) < 2:
        return {}
    return {id(parameter): name for name, block in reversed(blocks.items()) for parameter in block.parameters()}


def _tables(model: nn.Module) -> set[int]:
    """Ids of the parameters of embeddings, since a head that is tied to one is not pruned."""
    modules = (module for module in model.modules() if isinstance(module, (nn.Embedding, nn.EmbeddingBag)))
    return {id(parameter) for module in modules for parameter in module.parameters(recurse=False)}
