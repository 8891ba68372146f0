"""Reading and writing DPOT checkpoints: the released format, plain state dicts and Lightning checkpoints.

Nothing is unpickled freely: only tensors, plain Python containers and `argparse.Namespace` are admitted.
"""

from __future__ import annotations

import argparse
import os
import uuid
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, NamedTuple

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from lightning_farms.models.dpot import DPOT

_ANCHOR = "pos_embed"  # a tensor that every DPOT has at its top level: what stands before it is the prefix
_SHOWN = 5


class Checkpoint(NamedTuple):
    """What a checkpoint file holds of a DPOT.

    Attributes:
        tensors: the network's tensors by name, without any prefix, on the CPU.
        settings: the saved settings (`args` of the released format, `hyper_parameters` of Lightning), as they
            were named there; empty if there are none.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any]


def load_weights(model: DPOT, path: str | os.PathLike[str]) -> None:
    """Load a checkpoint's weights into an existing DPOT; every tensor must be there and have the model's shape.

    Args:
        model: the network, changed in place. Nothing is changed if an error is raised.
        path: file in the released format, a plain state dict or a Lightning checkpoint.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read safely, or its tensors are not those of the model; the message
            names the first of them with both shapes.

    Warns:
        UserWarning: if the file says that it was trained with another activation or number of modes.

    Example:
        >>> import tempfile
        >>> from lightning_farms.models import DPOT
        >>> small = dict(img_size=16, patch_size=4, embed_dim=8, depth=1, n_blocks=2, out_layer_dim=4)
        >>> first, second = DPOT(**small), DPOT(**small)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(first, f"{folder}/dpot.pth")
        ...     load_weights(second, f"{folder}/dpot.pth")
        >>> bool(torch.equal(first.pos_embed, second.pos_embed))
        True
    """
    checkpoint = read_checkpoint(path)
    load_tensors(model, checkpoint.tensors, path)
    for name in ("act", "modes"):
        saved, own = checkpoint.settings.get(name), model.config[name]
        if saved is not None and saved != own:
            message = (
                f"{os.fspath(path)!r} was saved with {name}={saved!r}, but the model was built with {name}={own!r}."
            )
            warnings.warn(message, UserWarning, stacklevel=2)


def save_weights(model: DPOT, path: str | os.PathLike[str]) -> None:
    """Write a DPOT's weights and settings in the released format, {'model': tensors, 'args': Namespace}.

    The file appears complete or not at all: it is written under another name beside its place, then renamed.

    Args:
        model: the network; it is not changed.
        path: where to write; an existing file is replaced, missing folders are made.

    Example:
        >>> import tempfile
        >>> from lightning_farms.models import DPOT
        >>> model = DPOT(img_size=16, patch_size=4, embed_dim=8, depth=1, n_blocks=2, act="silu")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(model, f"{folder}/dpot.pth")
        ...     DPOT.from_checkpoint(f"{folder}/dpot.pth").config["act"]
        'silu'
    """
    target = Path(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu() for name, tensor in model.state_dict().items()}
    content = {"model": tensors, "args": argparse.Namespace(**_released_names(dict(model.config)))}
    draft = target.with_name(f".{target.name}.{uuid.uuid4().hex}.tmp")
    try:
        with draft.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(target)
    finally:
        draft.unlink(missing_ok=True)


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a DPOT's tensors and settings from a file, without ever running code from it.

    Args:
        path: file in the released format ({'model', 'args', ...}, names with or without 'module.'), a plain
            state dict, or a Lightning checkpoint ('state_dict', any prefix such as 'network.').

    Returns:
        Tensors and settings.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds more than tensors and plain values, or holds no DPOT.
    """
    content = _load_safely(Path(path))
    if not isinstance(content, Mapping):
        raise ValueError(
            f"Expected argument `path` to be a checkpoint that holds a dictionary, but {os.fspath(path)!r} holds "
            f"a {type(content).__name__}."
        )
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            return Checkpoint(_strip_prefix(content[key], path), _settings(content))
    return Checkpoint(_strip_prefix(content, path), {})


def load_tensors(model: nn.Module, tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> None:
    """Copy tensors into a module after checking that names and shapes are exactly the module's own.

    Args:
        model: the module, changed in place.
        tensors: its new values by name.
        path: where they come from, for the message.

    Raises:
        ValueError: if tensors are missing, left over or of other shapes.
    """
    own = model.state_dict()
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
            "contradicting settings, which takes the sizes from the file, or give the model the file's sizes."
        )
    model.load_state_dict(dict(tensors))


def infer_sizes(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> dict[str, Any]:
    """Work out DPOT's settings from the shapes of its tensors, and from the saved settings what shapes cannot tell.

    Only `modes` and `act` leave no trace in the shapes; they are in the result only if the file says them.

    Args:
        checkpoint: tensors and saved settings.
        path: where they come from, for the message.

    Returns:
        Keyword arguments for DPOT.

    Raises:
        ValueError: if a tensor that a DPOT must have is missing or cannot be one of a DPOT.
    """
    tensors = checkpoint.tensors
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        _, embed_dim, rows, columns = shapes["pos_embed"]
        hidden, stem_inputs, patch_size, _ = shapes["patch_embed.proj.0.weight"]
        out_channels = (hidden - 3) // patch_size
        sizes: dict[str, Any] = {
            "img_size": rows * patch_size,
            "patch_size": patch_size,
            "in_channels": stem_inputs - 3,
            "out_channels": out_channels,
            "in_timesteps": shapes["time_agg_layer.w"][0],
            "out_timesteps": shapes["out_layer.4.weight"][0] // out_channels,
            "embed_dim": embed_dim,
            "depth": len({name.split(".")[1] for name in tensors if name.startswith("blocks.")}),
            "n_blocks": shapes["blocks.0.filter.w1"][1],
            "mlp_ratio": shapes["blocks.0.mlp.0.weight"][0] / embed_dim,
            "out_layer_dim": shapes["out_layer.2.weight"][0],
            "n_cls": shapes["cls_head.4.weight"][0],
            "normalize": "scale_feats_mu.weight" in tensors,
            "time_agg": "exp_mlp" if "time_agg_layer.gamma" in tensors else "mlp",
        }
    except (KeyError, IndexError, ValueError, ZeroDivisionError) as error:
        raise ValueError(
            f"Expected argument `path` to be a checkpoint of a DPOT, but {os.fspath(path)!r} is of another network "
            f"(first failure: {error!r})."
        ) from error
    if rows != columns:
        raise ValueError(f"Expected a checkpoint for square images, but `pos_embed` has {rows} x {columns} patches.")
    saved = {name: checkpoint.settings.get(name) for name in ("modes", "act")}
    return sizes | {name: value for name, value in saved.items() if value is not None}


def _load_safely(path: Path) -> object:
    if not path.is_file():
        raise FileNotFoundError(f"Expected argument `path` to be an existing checkpoint file, but got {str(path)!r}.")
    with path.open("rb") as file, torch.serialization.safe_globals([argparse.Namespace]):
        return _load_open_file(file, path)


def _load_open_file(file: BinaryIO, path: Path) -> object:
    try:
        return torch.load(file, map_location="cpu", weights_only=True)
    except MemoryError:
        raise
    except Exception as error:  # a damaged file can fail in any way inside the reader, also as OSError
        if "global" in str(error).lower():
            raise ValueError(
                f"Expected argument `path` to be a checkpoint of tensors and plain values, but {str(path)!r} holds "
                f"other pickled objects, which could run code: {_first_reason(error)}. If you trust its source, "
                "load it yourself and save {'model': state_dict} alone."
            ) from error
        raise ValueError(
            f"Expected argument `path` to be a PyTorch checkpoint, but {str(path)!r} is damaged, truncated or of "
            f"another format ({type(error).__name__}). Copy or download it again."
        ) from error


def _first_reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    named = [line.partition("WeightsUnpickler error: ")[2] or line for line in lines if "global" in line.lower()]
    return named[0].split(". ")[0].removesuffix(".")


def _strip_prefix(state: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    tensors = {str(name): value for name, value in state.items() if isinstance(value, Tensor)}
    prefixes = [name.removesuffix(_ANCHOR) for name in tensors if name == _ANCHOR or name.endswith(f".{_ANCHOR}")]
    if len(prefixes) != 1:
        found = f"{len(prefixes)} of them, under {prefixes}" if prefixes else f"no tensor `{_ANCHOR}`"
        raise ValueError(
            f"Expected argument `path` to be a checkpoint that holds one DPOT, but {os.fspath(path)!r} holds {found}. "
            "Save the state dict of the DPOT alone."
        )
    prefix = prefixes[0]
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


def _settings(content: Mapping[str, Any]) -> dict[str, Any]:
    """Find the saved settings of DPOT: a Namespace or dictionary, possibly nested as LightningCLI writes them."""
    saved = content.get("args", content.get("hyper_parameters"))
    settings = vars(saved) if isinstance(saved, argparse.Namespace) else saved
    return _find_settings(settings) if isinstance(settings, Mapping) else {}


def _find_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    if "modes" in settings or "act" in settings:
        return dict(settings)
    for value in settings.values():
        nested = vars(value) if isinstance(value, argparse.Namespace) else value
        if isinstance(nested, Mapping) and (found := _find_settings(nested)):
            return found
    return {}


def _released_names(config: dict[str, Any]) -> dict[str, Any]:
    """Rename settings to what the released programs' command line calls them."""
    names = {
        "img_size": "res",
        "in_timesteps": "T_in",
        "out_timesteps": "T_bundle",
        "embed_dim": "width",
        "depth": "n_layers",
    }
    return {"model": "DPOT", **{names.get(name, name): value for name, value in config.items()}}
