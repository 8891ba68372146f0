"""The parameters of a model by the weights that they hold and the layers to which they belong."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import NamedTuple

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_farms.analysis.selection import PatternError, Selection
from lightning_farms.analysis.weights.model import layer_weights
from lightning_farms.analysis.weights.ownership import parameter_layers
from lightning_farms.balancing.control import Control


class Structure(NamedTuple):
    """The parameters that optimizers hold, by layer and by weight."""

    layer_of: dict[Tensor, str]  # as from parameter_layers
    holders: dict[str, tuple[Tensor, ...]]  # parameters that hold each weight, in the report's order
    unbalanced: set[str]  # weights whose layer the control leaves out
    sizes: dict[Tensor, int]  # number of entries of each parameter of layer_of

    @property
    def layers(self) -> dict[str, str]:
        """{weight: layer to which it belongs}."""
        return {name: self.layer_of[holders[0]] for name, holders in self.holders.items() if holders}


def structure(
    model: nn.Module, selection: Selection, control: Control, original: Mapping[Tensor, Tensor] | None = None
) -> Structure:
    """Find the structure of a model, without computing or communicating anything.

    ``original``: {tensor in the model: parameter that the optimizer holds}, if they differ (FSDP1).
    """
    original = original or {}
    layer_of = parameter_layers(model, selection, norms=control.norms, biases=control.biases)
    sizes = {original.get(p, p): 0 if is_lazy(p) else p.numel() for p in layer_of}  # not the size of a part
    layer_of = {original.get(p, p): layer for p, layer in layer_of.items()}
    holders, selected = {}, []
    for weight in layer_weights(model, selection, values=False):
        holders[weight.name] = tuple(original.get(p, p) for p in weight.holders)
        if not weight.reason:
            selected.append(weight.name)
    found = Structure(layer_of, holders, set(), sizes)
    ordered = list(dict.fromkeys(found.layers[name] for name in selected if name in found.layers))
    ends = {*(() if control.first_layer else ordered[:1]), *(() if control.last_layer else ordered[-1:])}
    layers = replace(control.layers, embeddings=True, low_rank_products=selection.low_rank_products)
    refused = {weight.name for weight in layer_weights(model, layers, values=False) if weight.reason}
    return found._replace(unbalanced=refused | {name for name, layer in found.layers.items() if layer in ends})


def has_structure(model: nn.Module, selection: Selection, control: Control) -> bool:
    """Tell whether all patterns fit a layer; where one does not, the analysis says so."""
    try:
        structure(model, selection, control)
    except PatternError:
        return False
    return True
