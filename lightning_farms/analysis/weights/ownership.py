"""Maps each parameter to the layer that it belongs to."""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights._parametrised import is_parametrisation, own_parameters
from lightning_farms.analysis.weights.layer_weight import NO_MATRICES, LayerWeight
from lightning_farms.analysis.weights.model import layer_weights


def parameter_layers(
    model: nn.Module, selection: Selection = Selection(), *, norms: bool = True, biases: bool = True
) -> dict[Tensor, str]:
    """Return the layer that each parameter belongs to, for layer-wise hyperparameters.

    A weight's own parameters and its bias belong to the weight's layer; further parameters of the same module belong
    to the module's first layer. A parameter that holds several weights (queries, keys and values; the gates of a
    recurrent layer) belongs to a layer named by what their names have in common: ``attn.in_proj_weight`` for
    ``attn.in_proj_weight.q`` and so on. A module without a matrix (a norm) belongs to the layer before it among its
    siblings, as a BatchNorm belongs to its convolution; if its parent starts with a norm (pre-norm blocks), it belongs
    to the layer after it. Parameters that belong to no layer are left out; those of weights that are not analysed are
    included.

    Args:
        model: the model.
        selection: as in the analysis; only ``low_rank_products`` has an effect here.
        norms: whether modules without a matrix belong to a layer.
        biases: whether parameters of a weight's module that do not hold the weight (its bias) belong to its layer.

    Returns:
        {parameter: name of its layer as in the report, or what the names of several layers have in common}.

    Example:
        >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> [parameter_layers(net)[p] for p in net.parameters()]
        ['0', '0', '0', '0']
    """
    structure = Selection(low_rank_products=selection.low_rank_products)
    layers = [_outline(layer) for layer in layer_weights(model, structure, values=False)]
    shared = _shared_names(layers)
    owners: dict[Tensor, str] = {}
    for layer in layers:
        for parameter in layer.parameters:
            owners.setdefault(parameter, shared.get(layer.name, layer.name))
    holders = {holder for layer in layers for holder in layer.holders}
    for module_name, module in model.named_modules():
        if not is_parametrisation(module_name):
            _adopt_leftovers(module, owners)
    of_weights = set(owners)
    for module in model.modules():
        _adopt_norms(list(module.children()), owners)
    return {p: layer for p, layer in owners.items() if p in holders or (biases if p in of_weights else norms)}


def _outline(layer: LayerWeight) -> LayerWeight:
    """Return the layer without its matrices, which may take memory if they were computed."""
    return layer._replace(matrices=NO_MATRICES)


def _shared_names(layers: Iterable[LayerWeight]) -> dict[str, str]:
    """Return {layer: common name} for the layers that are rows of one parameter."""
    by_holder: dict[Tensor, list[str]] = {}
    for layer in layers:
        for holder in layer.holders[:1]:
            by_holder.setdefault(holder, []).append(layer.name)
    taken = {name for names in by_holder.values() for name in names}
    shared: dict[str, str] = {}
    for names in by_holder.values():
        if len(names) > 1:
            common = _common_prefix(names)
            shared.update(dict.fromkeys(names, common if common and common not in taken else names[0]))
    return shared


def _common_prefix(names: list[str]) -> str:
    common: list[str] = []
    for parts in zip(*(name.split(".") for name in names), strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


def _adopt_leftovers(module: nn.Module, owners: dict[Tensor, str]) -> None:
    own = own_parameters(module)
    layer = next((owners[p] for p in own if p in owners), None)
    if layer is not None:
        for parameter in own:
            owners.setdefault(parameter, layer)


def _adopt_norms(siblings: list[nn.Module], owners: dict[Tensor, str]) -> None:
    """Assign the parameters of siblings without a layer to the layer before (post-norm) or after (pre-norm)."""
    parameters = [list(sibling.parameters()) for sibling in siblings]
    layers = [[owners[p] for p in own if p in owners] for own in parameters]
    norms = [not found and _only_vectors(own) for own, found in zip(parameters, layers, strict=True)]
    pre_norm = next((norm for own, norm in zip(parameters, norms, strict=True) if own), False)
    for index, own in enumerate(parameters):
        if not norms[index]:
            continue
        before = [names[-1] for names in layers[:index] if names][-1:]
        after = [names[0] for names in layers[index + 1 :] if names][:1]
        for owner in (after + before if pre_norm else before + after)[:1]:
            owners.update(dict.fromkeys(own, owner))


def _only_vectors(parameters: list[nn.Parameter]) -> bool:
    return not any(is_lazy(p) or p.ndim >= 2 for p in parameters)
