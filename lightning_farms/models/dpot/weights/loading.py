"""Loading a checkpoint, or components of it, into a DPOT, with a report of what was loaded, adapted and left out."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple, get_args

import torch
from torch import Tensor

from lightning_farms.common.texts import listed
from lightning_farms.common.warning import warn_user
from lightning_farms.models._finite import check_finite_weights
from lightning_farms.models.dpot.config import patches
from lightning_farms.models.dpot.weights._network import ConfiguredNetwork
from lightning_farms.models.dpot.weights._reading import Checkpoint, infer_sizes, read_checkpoint
from lightning_farms.models.dpot.weights.adapting import Adapted, adapt_tensors
from lightning_farms.models.dpot.weights.hub import find_checkpoint
from lightning_farms.models.dpot.weights.released import settings_beyond_shapes
from lightning_farms.models.dpot.weights.report import NOT_ASKED_FOR, Component, LoadReport, component_of

_SHOWN = 5


class LoadPlan(NamedTuple):
    """The tensors to load, and the report about them."""

    tensors: dict[str, Tensor]  # to be loaded with strict=False
    report: LoadReport


def load_weights(
    model: ConfiguredNetwork,
    path: str | os.PathLike[str],
    *,
    components: Collection[Component] | None = None,
    adapt: bool = False,
) -> LoadReport:
    """Load a checkpoint's weights into an existing DPOT.

    By default, every tensor must be present and have the model's shape. With `components`, only parts are loaded; with
    `adapt`, tensors of another image size or other numbers of channels, frames or classes are made to fit
    (:func:`lightning_farms.models.dpot.weights.adapting.adapt_tensors` has the rules).

    Args:
        model: the network, changed in place. Nothing is changed if an error is raised.
        path: file in the released format, a plain state dict, a Lightning checkpoint or safetensors; or the name of
            a released size, such as "tiny", which is downloaded into the cache of huggingface_hub once.
        components: parts to load; the others are left as they are. All by default.
        adapt: whether to make tensors of other sizes fit, rather than refuse them.

    Returns:
        What was loaded, adapted and left out, and why.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read safely, its tensors are not those of the model (the message names the
            first of them with both shapes), or a component does not exist.
        ImportError: if a package is missing for a released size or for safetensors.
        OSError: if a released size cannot be downloaded.

    Warns:
        UserWarning: if the file says that it was trained with another activation or number of modes.

    Example:
        >>> import tempfile
        >>> from lightning_farms.models import DPOT, save_weights
        >>> small = dict(img_size=16, patch_size=4, embed_dim=8, depth=1, n_blocks=2, out_layer_dim=4)
        >>> first, second = DPOT(**small), DPOT(**small | {"img_size": 32})
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(first, f"{folder}/dpot.pth")
        ...     report = load_weights(second, f"{folder}/dpot.pth", adapt=True)
        >>> dict(report.adapted)
        {'pos_embed': '4 x 4 patches resized bicubically to 8 x 8'}
    """
    file = find_checkpoint(path)
    checkpoint = read_checkpoint(file)
    plan = plan_loading(model, checkpoint, file, components=components, adapt=adapt)
    model.load_state_dict(plan.tensors, strict=False)
    _warn_of_another_function(model, checkpoint.settings | settings_beyond_shapes(path), file)
    return plan.report


def plan_loading(
    model: ConfiguredNetwork,
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    components: Collection[Component] | None = None,
    adapt: bool = False,
) -> LoadPlan:
    """Decide which of a checkpoint's tensors go into a network, without changing the network."""
    asked = _check_components(components)
    offered = {name: tensor for name, tensor in checkpoint.tensors.items() if component_of(name) in asked}
    adapted = Adapted(offered, {}, {})
    if adapt:
        saved = infer_sizes(checkpoint, path)
        adapted = adapt_tensors(offered, saved, model.config)
    left_out = {name: why for name, why in adapted.left_out.items() if component_of(name) in asked}
    own = {name: tensor for name, tensor in model.state_dict().items() if component_of(name) in asked}
    counted = {name: tensor for name, tensor in own.items() if name not in left_out}
    _check_fit(counted, adapted.tensors, path)
    _check_numbers(offered, path)
    check_finite_weights({name: _in_range_of(own.get(name), tensor) for name, tensor in offered.items()}, path)
    why_not = {name: left_out.get(name, NOT_ASKED_FOR) for name in (*model.state_dict(), *checkpoint.tensors)}
    report = LoadReport(
        source=os.fspath(path),
        loaded=tuple(name for name in counted if name not in adapted.changes),
        adapted=adapted.changes,
        skipped={name: why_not[name] for name in model.state_dict() if name not in counted},
        unused={name: why_not[name] for name in checkpoint.tensors if name not in adapted.tensors},
    )
    return LoadPlan(adapted.tensors, report)


def _check_components(components: Collection[Component] | None) -> set[str]:
    known = get_args(Component)
    if components is None:
        return set(known)
    unknown = [components] if isinstance(components, str) else [name for name in components if name not in known]
    if unknown or not components:
        raise ValueError(
            f"Expected argument `components` to be a list of one or more of {', '.join(known)}, but got {components!r}."
        )
    return set(components)


def _check_numbers(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Refuse tensors that are not weights by themselves: codes of packed weights, and complex numbers."""
    others = [
        f"{name} ({str(tensor.dtype).removeprefix('torch.')})"
        for name, tensor in tensors.items()
        if not tensor.is_floating_point() or tensor.dtype.itemsize < 2
    ]
    if others:
        raise ValueError(
            f"Expected the weights of {os.fspath(path)!r} to be floating-point numbers of 16 bits or more, but these "
            f"tensors are of another kind: {listed(others, _SHOWN)}. If they are packed, write them unpacked, in "
            "float32, to a new file."
        )


def _in_range_of(own: Tensor | None, tensor: Tensor) -> Tensor:
    """The tensor in the model's dtype, if values may become infinite there; otherwise as it is."""
    if own is None or not own.is_floating_point() or torch.finfo(tensor.dtype).max <= torch.finfo(own.dtype).max:
        return tensor
    return tensor.to(own.dtype)


def _check_fit(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    shapes = [
        f"{name}: {tuple(tensors[name].shape)} in the file, {tuple(own[name].shape)} in the model"
        for name in own
        if name in tensors and tensors[name].shape != own[name].shape
    ]
    missing = [name for name in own if name not in tensors]
    unexpected = [name for name in tensors if name not in own]
    problems = [
        f"{len(found)} {title} ({'; '.join(found[:_SHOWN])}{'; ...' if len(found) > _SHOWN else ''})"
        for title, found in (
            ("of other shape", shapes),
            ("missing from the file", missing),
            ("unknown to the model", unexpected),
        )
        if found
    ]
    if problems:
        raise ValueError(
            f"Expected argument `path` to be a checkpoint whose tensors are those of the model, but "
            f"{os.fspath(path)!r} differs: {', '.join(problems)}. Use DPOT.from_checkpoint(path) without the "
            "contradicting settings, which takes the sizes from the file, or give the model the file's sizes. "
            "DPOT.from_pretrained, and load_weights with adapt=True, make another image size and other numbers of "
            "channels, frames and classes fit; with `components` they leave parts out."
        )


def _warn_of_another_function(model: ConfiguredNetwork, settings: Mapping[str, object], path: Path) -> None:
    """Warn if activation or modes differ; numbers of modes beyond those that the grid has mean the same."""
    config = model.config
    grid = max(patches(config))
    modes = settings.get("modes")
    others: list[tuple[str, object, object]] = []
    if settings.get("act") not in (None, config["act"]):
        others.append(("act", settings["act"], config["act"]))
    if isinstance(modes, int) and min(modes, grid) != min(config["modes"], grid):
        others.append(("modes", modes, config["modes"]))
    for name, saved, own in others:
        warn_user(
            f"{str(path)!r} was saved with {name}={saved!r}, but the model was built with {name}={own!r}. Build "
            "it with "
            f"{name}={saved!r} to have the network that was saved."
        )
