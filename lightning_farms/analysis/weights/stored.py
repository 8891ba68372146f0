"""Locates the entries of each weight in a model's parameters, so that they can be changed where they are stored."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights._gathered import modules_read
from lightning_farms.analysis.weights._replacing import parameters_of, replacing
from lightning_farms.analysis.weights.layer_weight import LayerWeight
from lightning_farms.analysis.weights.model import _named_modules, _read, layer_weights
from lightning_farms.analysis.weights.registry import claimed_weights

Part: TypeAlias = slice | Tensor
"""Positions in a flattened parameter, ascending."""

_COMPUTED = "its values are computed from parameters (a norm, a product), not stored as they are"


class StoredWeight(NamedTuple):
    """A weight of a model, and where its entries are.

    Attributes:
        name: name of the layer, as in :func:`layer_weights`.
        shape: shape as stored; empty if unknown.
        key: name of the parameter that holds the entries, without the parts that wrappers add; empty if there is a
            reason.
        parameter: that parameter, which may be sharded; None if there is a reason.
        parts: positions of the entries in the flattened parameter, each part with one position per entry: one part for
            numbers as they are stored; two, real and imaginary, for complex numbers in a real parameter.
        size: number of entries.
        reason: why the weight is not selected, or its entries cannot be located; empty if they can.
        selected: whether the weight is selected, even if its entries cannot be located.
    """

    name: str
    shape: tuple[int, ...]
    key: str = ""
    parameter: Tensor | None = None
    parts: tuple[Part, ...] = ()
    size: int = 0
    reason: str = ""
    selected: bool = True


def stored_weights(model: nn.Module, selection: Selection = Selection()) -> list[StoredWeight]:
    """Locate the entries of a model's weights, in the order of :func:`layer_weights`.

    Every module is asked for its matrices while its parameters hold their own positions, so that slices (queries, keys
    and values in one parameter), transposed and permuted weights, and pairs that make complex numbers are found without
    knowing the class. A weight that comes back as anything but positions was computed, and gets a reason. Sharded
    parameters are not gathered.

    Args:
        model: any module.
        selection: the weights to locate.

    Returns:
        One item per weight; weights that are left out have a reason.

    Raises:
        TypeError: ``model`` is not a module, or ``selection`` not a :class:`Selection`.
        ValueError: a pattern of ``selection`` matches no layer.

    Example:
        >>> [(w.name, w.key, w.parts) for w in stored_weights(nn.Sequential(nn.Linear(3, 2)))]
        [('0', '0.weight', (slice(0, 6, 1),))]
    """
    outlines = [layer._replace(matrices=layer.matrices[:0]) for layer in layer_weights(model, selection, values=False)]
    wanted = {outline.name for outline in outlines if not outline.reason}
    found: dict[str, StoredWeight] = {}
    for name, module in _named_modules(model):
        for weight in _of_module(name, module, selection, wanted) if wanted else ():
            found.setdefault(weight.name, weight)
    keys = {id(parameter): key for key, parameter in named_parameters(model).items()}
    return [_placed(outline, found.get(outline.name), keys) for outline in outlines]


def _placed(outline: LayerWeight, found: StoredWeight | None, keys: dict[int, str]) -> StoredWeight:
    """Return the weight with its parameter's name, or with the reason why there is none."""
    if outline.reason or found is None or id(found.parameter) not in keys:
        reason = outline.reason or _COMPUTED
        return StoredWeight(outline.name, outline.shape, reason=reason, selected=not outline.reason)
    return found._replace(key=keys[id(found.parameter)])


def named_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return a model's parameters by their names without wrappers; a shared parameter has its first name.

    Example:
        >>> list(named_parameters(nn.DataParallel(nn.Linear(2, 2))))
        ['weight', 'bias']
    """
    names: dict[nn.Parameter, str] = {}
    for module_name, module in _named_modules(model):
        for name, parameter in module.named_parameters(recurse=False):
            names.setdefault(parameter, f"{module_name}.{name}".lstrip("."))
    return {name: parameter for parameter, name in names.items()}


def _of_module(name: str, module: nn.Module, selection: Selection, wanted: set[str]) -> Iterator[StoredWeight]:
    try:
        with _positions_in_parameters(modules_read(module)) as (originals, starts):
            layers = _read(name, module, claimed_weights, selection, originals, values=True)
    except Exception:  # a user's class may do anything; its weights are then not located
        return
    for layer in layers:
        if layer.name in wanted and not layer.reason:
            columns = _columns(layer.matrices)
            for parameter in layer.holders:
                parts = _parts(columns - starts[id(parameter)], parameter.numel()) if id(parameter) in starts else ()
                if parts:
                    yield StoredWeight(layer.name, layer.shape, "", parameter, parts, columns.shape[1])


@contextmanager
def _positions_in_parameters(modules: list[nn.Module]) -> Iterator[tuple[dict[int, Tensor], dict[int, int]]]:
    """Let parameters hold 0, 1, 2, ... in their own shapes for a while, each going on where the one before ends.

    Yields {id of such a parameter: the original} and {id of an original: the number at which it starts}.
    """
    originals: dict[int, Tensor] = {}
    starts: dict[int, int] = {}
    end = 0
    with replacing() as put:
        for module in modules:
            for name, tensor in list(parameters_of(module).items()):
                if tensor is not None:
                    positions = _positions(tensor, starts.setdefault(id(tensor), end))
                    put(parameters_of(module), name, positions)
                    originals[id(positions)] = tensor
                    end = max(end, starts[id(tensor)] + tensor.numel())
        yield originals, starts


def _positions(tensor: Tensor, start: int) -> nn.Parameter:
    device = "cpu" if tensor.is_meta else tensor.device
    numbers = torch.arange(start, start + tensor.numel(), dtype=torch.float64, device=device).reshape(tensor.shape)
    return nn.Parameter(numbers.to(torch.complex128) if tensor.is_complex() else numbers, requires_grad=False)


def _columns(matrices: Tensor) -> Tensor:
    """Flatten (P, m, n) to (1, P m n), or to real and imaginary parts (2, P m n) if the latter are positions, too."""
    if not matrices.is_complex():
        return matrices.reshape(1, -1)
    columns = torch.view_as_real(matrices.resolve_conj()).reshape(-1, 2).T
    return columns if bool(columns[1].any()) else columns[:1]


def _parts(columns: Tensor, numel: int) -> tuple[Part, ...]:
    """Return positions sorted by the first column; none unless they are distinct integers below ``numel``."""
    if not bool(((columns == columns.round()) & (columns >= 0) & (columns < numel)).all()):
        return ()
    positions = columns.to(torch.int64)
    seen = torch.zeros(numel, dtype=torch.bool, device=columns.device)
    seen[positions.flatten()] = True
    if int(seen.sum()) != positions.numel():
        return ()
    if len(positions) == 1:
        return (slice(0, numel, 1) if positions.numel() == numel else _as_slice(seen.nonzero().flatten()),)
    positions = positions[:, positions[0].argsort()]
    return tuple(_as_slice(column) for column in positions)


def _as_slice(positions: Tensor) -> Part:
    """Return positions as a slice if they are evenly spaced, else as they are."""
    start = int(positions[0])
    step = int(positions[1]) - start if len(positions) > 1 else 1
    if step > 0 and bool((positions.diff() == step).all()):
        return slice(start, int(positions[-1]) + 1, step)
    return positions.cpu()
