"""Reads the weight matrices of a checkpoint, one after another, without the model's classes."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lightning_farms.analysis._difference import differences
from lightning_farms.analysis._engine.failures import error_text
from lightning_farms.analysis._names import match_names, module_and_leaf
from lightning_farms.analysis._rounding import steps_of_grid
from lightning_farms.analysis.checkpoint._dequantise import NEVER_UNPACKED, dequantised, weight_name
from lightning_farms.analysis.checkpoint._effective import StoredTensor, effective_tensors, plain_names
from lightning_farms.analysis.checkpoint._low_rank_pairs import low_rank_pairs, low_rank_product
from lightning_farms.analysis.checkpoint._quantised import Quantised, find_quantised
from lightning_farms.analysis.checkpoint._stored_layers import (
    NOT_UNPACKED,
    StoredLeaf,
    is_embedding,
    leaf_layers,
    skipped_layer,
)
from lightning_farms.analysis.checkpoint._tied_head import with_its_head
from lightning_farms.analysis.selection import Selection
from lightning_farms.analysis.weights._gathered import must_be_gathered
from lightning_farms.analysis.weights._products import lone_factor
from lightning_farms.analysis.weights._stacked_experts import NOT_TOLD, experts_in, stacked_leaf, unstacked
from lightning_farms.analysis.weights.layer_weight import NO_MATRICES, LayerWeight
from lightning_farms.common.checkpoints.files import MODULES_EXTRAS, open_checkpoint
from lightning_farms.common.checkpoints.pickled_tensor import UnreadableTensor
from lightning_farms.common.checkpoints.shapes import MetaTensors, SomeTensors, StoredTensors
from lightning_farms.common.texts import joined

Source = str | os.PathLike[str] | Mapping[str, Tensor]
_NO_VALUES = "the weights are on the meta device, without values"

_NO_TENSORS = re.compile(rf"(.*\.)?({MODULES_EXTRAS})")
"""Names of the entries besides tensors that modules put into their state dicts."""

_PART = re.compile(r"_(orig|mask|[guv])$|(^|\.)parametrizations\.|lora_|lokr_|hada_|vera_")
"""Names of tensors that are no weight by themselves; if they are equal, their weights need not be."""

Modules = dict[str, dict[str, StoredTensor]]


def checkpoint_weights(
    source: Source, selection: Selection = Selection(), *, values: bool = True
) -> Iterator[LayerWeight]:
    """Iterate over the weight matrices of a checkpoint or state dict, as ``layer_weights`` finds them in the model.

    A state dict does not tell a convolution's groups (the matrices of all groups are taken as one), whether a
    convolution without a bias or with as many inputs as outputs is transposed (its matrices are then transposed, too,
    which does not change alpha), the orientation of a linear weight if its bias does not tell, and the functions by
    which a module computes its weight.

    A table of embeddings is known by its name. A ``weight`` with 3, 4 or 5 dimensions is taken to be a convolution,
    unless its module is named after experts, it has a bias for each matrix or for its last dimension, or its last
    dimension is longer than any kernel; then it is a batch of matrices. (outputs, k, k, k, inputs) is the layout of
    sparse convolutions, and (outputs, 16, 16, 3) that of images with the channels last. If such a guess changes the
    number, the weight has a remark; give the right layout by ``Selection(layout=...)``.

    Args:
        source: path of a checkpoint, see :func:`open_checkpoint`, or tensors by name, such as those of
            ``open_checkpoint(path, dequantize=True)``. An optimizer's state in the file is not read.
        selection: which weights are analysed.
        values: whether values are read from the file; if not, the matrices are on the meta device.

    Returns:
        An iterator over the weights in the order of the names; tied weights come once. It keeps none of them, so if the
        mapping reads from disk, only one module's tensors are in memory at a time. A weight that is not selected, is
        quantised, cannot be read, or is parametrised in an unknown way has a reason instead of values.

    Raises:
        FileNotFoundError: there is no such file, or a shard of it is missing.
        ValueError: the file is no checkpoint, or a pattern of the selection matches no layer.
        TypeError: a state dict holds something else than tensors and plain values.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 5), torch.nn.Linear(8, 2))
        >>> [(w.name, w.kind, tuple(w.matrices.shape)) for w in checkpoint_weights(model.state_dict())]
        [('0', 'convolution', (25, 8, 3)), ('1', 'linear', (1, 2, 8))]
    """
    tensors = _opened(source)
    unread = _unread(tensors, selection)
    modules = _modules(tensors if values else MetaTensors(tensors), selection)

    def of_module(name: str) -> Iterable[LayerWeight]:
        return unread.pop(name) if name in unread else _module_layers(modules, name, selection, values=values)

    return _apart_by_name(layer for name in modules for layer in of_module(name))


def checkpoint_changes(source: Source, base: Source, selection: Selection = Selection()) -> Iterator[LayerWeight]:
    """Iterate over the changes of weight matrices between two checkpoints, W - W_base, such as by fine-tuning.

    Args:
        source: the later checkpoint, as in :func:`checkpoint_weights`.
        base: the earlier checkpoint. If the two have no name in common, the prefix that all names of either share
            (``network.``) is left out to match them.
        selection: which weights are analysed.

    Returns:
        An iterator over the changes. If only a few eigenvalues of a change stand clear of the rounding of both files (a
        merged low-rank update), only these are to be fitted. A change that is no more than rounding has the reason that
        the weight is unchanged. A weight that the base lacks, or has in another shape, has a reason, too.

    Raises:
        FileNotFoundError: there is no such file, or a shard of it is missing.
        ValueError: a file is no checkpoint, or a pattern of the selection matches no layer.
        TypeError: a state dict holds something else than tensors and plain values.

    Example:
        >>> import torch
        >>> before, after = torch.nn.Linear(3, 2).state_dict(), torch.nn.Linear(3, 2).state_dict()
        >>> [change] = checkpoint_changes(after, before)
        >>> torch.equal(change.matrices[0], after["weight"] - before["weight"])
        True
    """
    tensors = _opened(source)
    unread = _unread(tensors, selection)
    # weights that are tied in the base need not be tied later
    before_all = _read(base)
    before_all = with_its_head(before_all, _config(before_all))
    modules, earlier = _modules(tensors, selection), _modules(before_all, selection)
    partners = match_names(modules, earlier)

    everything = replace(selection, include=(), exclude=(), kinds=(), embeddings=True, min_size=1, max_size=None)

    def of_module(name: str) -> Iterable[LayerWeight]:
        if name in unread:
            return unread.pop(name)
        after = _module_layers(modules, name, selection)
        found = _module_layers(earlier, partners[name], everything) if name in partners else ()
        start = len(partners.get(name, ""))
        before = (layer._replace(name=name + layer.name[start:]) for layer in found)
        return differences(after, before)

    return _apart_by_name(change for name in modules for change in of_module(name))


def _apart_by_name(layers: Iterable[LayerWeight]) -> Iterator[LayerWeight]:
    """Give every layer a name of its own: a dictionary, though no module, can hold both ``a`` and ``a.weight``."""
    seen: set[str] = set()
    for layer in layers:
        while layer.name in seen:
            layer = layer._replace(name=f"{layer.name}.weight")
        seen.add(layer.name)
        yield layer


def _opened(source: Source) -> Mapping[str, Tensor]:
    tensors = _without_ties(_read(source))
    return with_its_head(tensors, _config(tensors))


def _read(source: Source) -> Mapping[str, Tensor]:
    """Return the tensors of a file or of a state dict, without plain values and other entries that modules add."""
    if not isinstance(source, Mapping):
        return open_checkpoint(source)
    if not isinstance(source, dict):  # it may read from disk
        return source
    others = {name: value for name, value in source.items() if not isinstance(value, Tensor)}
    for name, value in others.items():
        plain = value is None or isinstance(value, (bool, int, float, str, bytes))
        if not plain and not _NO_TENSORS.fullmatch(str(name)):
            raise TypeError(
                f"Expected a state dict, tensors by name, but got a {type(value).__name__} as {str(name)!r}. Give what "
                "holds the tensors itself; of an array make a tensor (torch.from_numpy)."
            )
    return {name: value for name, value in source.items() if name not in others} if others else source


def _modules(tensors: Mapping[str, Tensor], selection: Selection) -> Modules:
    """Return the tensors in effect by the module that holds them, and by their names within it."""
    stored = effective_tensors(tensors)
    pairs = low_rank_pairs(stored) if selection.low_rank_products else {}
    factors = {factor for pair in pairs.values() for factor in pair.factors}
    names = plain_names(list(tensors))
    quantised = _quantised(tensors, names)
    layouts, refused = _of_format(tensors, "layouts", names), _of_format(tensors, "refused", names)
    parameters: frozenset[str] = getattr(tensors, "parameters", frozenset())
    plain_parameters = {plain for plain, name in names.items() if name in parameters}
    plain_buffers = {plain for plain, name in names.items() if name in _buffers(tensors)}
    modules: Modules = {}
    split = module_and_leaf(list(stored))
    for name, tensor in stored.items():
        if name in quantised.companions or name in plain_buffers:
            continue
        tensor = _unpacked(names.get(name, ""), tensor, quantised.formats.get(name, ""), tensors)
        meant = weight_name(name) if name in quantised.formats and tensor.steps is not None else ""
        tensor = tensor._replace(
            layout=layouts.get(name, ""),
            reason=refused.get(name, "") or tensor.reason,
            parameter=name in plain_parameters,
            stands_for="" if meant in stored else meant,
        )
        if name in pairs:
            product = pairs[name]
            place = product.module, product.leaf
            _add(modules, place, name, low_rank_product(stored, product, _config(tensors)))
        elif name not in factors:
            plain = name.removesuffix(".tensor") if name.endswith("weight.tensor") else name  # tltorch's dense tensors
            _add(modules, split(plain), name, _of_experts(plain, tensor, tensors))
    return modules


def _add(modules: Modules, place: tuple[str, str], name: str, tensor: StoredTensor) -> None:
    """Add a tensor to its module, or to a module of its own if its place is taken (``weight`` and ``.weight``)."""
    module, leaf = place
    taken = leaf in modules.get(module, {})
    modules.setdefault(name if taken else module, {})[leaf] = tensor


def _unpacked(name: str, tensor: StoredTensor, packed: str, tensors: Mapping[str, Tensor]) -> StoredTensor:
    """Return a packed tensor with the numbers that it stands for, if that is asked for and possible."""
    wanted = packed and isinstance(tensors, (StoredTensors, MetaTensors)) and tensors.dequantize
    unpacked = dequantised(name, packed, tensors, _config(tensors)) if wanted and name else None
    if unpacked is not None:
        return tensor._replace(read=unpacked.read, steps=unpacked.steps, remark=f"unpacked ({packed})")
    done = getattr(tensors, "unpacked", {}).get(name, "")  # the file's reader has unpacked it
    if done and not packed:
        return tensor._replace(steps=lambda: steps_of_grid(tensor.read()), remark=f"unpacked ({done})")
    hopeless = bool(packed) and (wanted or packed in NEVER_UNPACKED)
    return tensor._replace(quantised=packed, reason=NOT_UNPACKED if hopeless else tensor.reason)


def _of_experts(name: str, tensor: StoredTensor, tensors: Mapping[str, Tensor]) -> StoredTensor:
    """Separate stacked experts by the configuration beside the file; add a remark if it does not tell their number."""
    leaf, count = stacked_leaf(name), experts_in(_config(tensors))
    if not leaf or tensor.quantised or tensor.reason or tensor.layout:
        return tensor
    if not count:
        return tensor._replace(remark=NOT_TOLD)

    def apart() -> Tensor:
        matrix = tensor.read()
        cut = unstacked(matrix, leaf, count)
        return matrix if cut is None else cut

    return tensor._replace(read=apart)


def _buffers(tensors: Mapping[str, Tensor]) -> frozenset[str]:
    return tensors.buffers if isinstance(tensors, (StoredTensors, MetaTensors)) else frozenset()


def _of_format(tensors: Mapping[str, Tensor], attribute: str, names: Mapping[str, str]) -> dict[str, str]:
    """Return what a file's format tells about its tensors, by their names without wrappers."""
    known: Mapping[str, str] = getattr(tensors, attribute, {})
    return {plain: known[name] for plain, name in names.items() if name in known}


def _config(tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    return tensors.config if isinstance(tensors, (StoredTensors, MetaTensors)) else {}


def _quantised(tensors: Mapping[str, Tensor], names: Mapping[str, str]) -> Quantised:
    """Find packed tensors and their companions, by their names without wrappers."""
    outlines = tensors if isinstance(tensors, MetaTensors) else MetaTensors(tensors)
    types: dict[str, torch.dtype] = {}
    for plain, name in names.items():
        with suppress(UnreadableTensor):  # the tensor has a row that says so
            types[plain] = outlines[name].dtype
    found = find_quantised(types, _config(tensors))
    return found._replace(formats={**found.formats, **_of_format(tensors, "quantised", names)})


def _without_ties(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """Keep one of tensors that are the same numbers: the first that is no table of embeddings, or else the first.

    Other mappings that read from disk stay as they are: once a tensor is freed, another may have its memory.
    """
    if isinstance(tensors, StoredTensors):
        keys = {name: name if _PART.search(name) else tensors.identity(name) for name in tensors}
    elif isinstance(tensors, dict):
        keys = {name: _memory(name, tensor) for name, tensor in tensors.items()}
    else:
        return tensors
    names: dict[object, str] = {}
    for name, key in keys.items():
        if key not in names or (_is_table(names[key]) and not _is_table(name)):
            names[key] = name
    kept = set(names.values())
    if len(kept) == len(keys):
        return tensors
    if isinstance(tensors, StoredTensors):
        return SomeTensors(tensors, {name: name for name in keys if name in kept})
    return {name: tensor for name, tensor in tensors.items() if name in kept}


def _is_table(name: str) -> bool:
    return is_embedding(name.rpartition(".")[0])


def _memory(name: str, tensor: Tensor) -> object:
    """Return a key that tensors share if they are the same numbers in memory; vectors have keys of their own."""
    try:
        if _PART.search(name) or tensor.is_meta or must_be_gathered(tensor) or not tensor.numel() or tensor.ndim < 2:
            return name
        return tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride()
    except (RuntimeError, ValueError):  # a nested tensor, or one that is not initialised
        return name


def _unread(tensors: Mapping[str, Tensor], selection: Selection) -> dict[str, list[LayerWeight]]:
    """Return the layers of modules without a selected weight, whose values need not be read; check the patterns."""
    everything = Selection(embeddings=selection.embeddings, low_rank_products=selection.low_rank_products)
    if selection == everything:
        return {}
    modules = _modules(MetaTensors(tensors), selection)
    layers = {name: list(_module_layers(modules, name, selection, values=False)) for name in modules}
    selection.check_patterns([layer.name for found in layers.values() for layer in found])
    return {name: found for name, found in layers.items() if all(layer.reason for layer in found)}


def _module_layers(
    modules: Modules, module: str, selection: Selection, *, values: bool = True
) -> Iterator[LayerWeight]:
    """Yield the layers of one module, without values if they are not selected or cannot be read."""
    leaves = modules[module]
    for name, stored in leaves.items():
        leaf = StoredLeaf(module, name, stored, leaves)
        given = selection.layout_of(leaf.layer)
        leaf = leaf._replace(stored=stored._replace(layout=given, remark="")) if given else leaf
        for layer in _readable_layers(leaf):
            said = leaf.stored.remark if leaf.stored.remark != NOT_TOLD or len(layer.shape) == 2 else ""
            layer = layer._replace(remark=joined(layer.remark, said), steps=_steps(leaf, layer.name))
            lone = lone_factor(layer.name, layer.kind) if selection.low_rank_products else ""
            reason = layer.reason or lone or selection.refusal(layer.name, layer.kind, layer.matrices.shape)
            if values and not reason and layer.matrices.is_meta:
                reason, layer = _NO_VALUES, layer._replace(unreadable=True)
            yield layer._replace(matrices=NO_MATRICES, parameters=(), reason=reason, rank=None) if reason else layer


def _steps(leaf: StoredLeaf, name: str) -> Callable[[], Tensor] | None:
    """Return a function that reads the steps of an unpacked weight, as matrices like its own."""
    steps = leaf.stored.steps
    if steps is None:
        return None
    alike = leaf._replace(stored=leaf.stored._replace(read=steps))
    return lambda: next(layer.matrices for layer in leaf_layers(alike) if layer.name == name)


def _readable_layers(leaf: StoredLeaf) -> list[LayerWeight]:
    """Return the layers of a tensor, or one with the reason why it cannot be read; other tensors keep their rows."""
    try:
        return leaf_layers(leaf)
    except Exception as error:  # a file may hold anything
        computed = f"the weight could not be computed: {error_text(error)}"
        reason = error.reason if isinstance(error, UnreadableTensor) else computed
        return [skipped_layer(leaf.layer, "parameter", (), reason)._replace(unreadable=True)]
