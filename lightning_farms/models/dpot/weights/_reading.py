"""Reading DPOT checkpoints: the released format, plain state dicts, Lightning checkpoints and safetensors.

Nothing is unpickled freely: only tensors, plain Python containers and `argparse.Namespace` are admitted.
"""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lightning_farms.common.checkpoints.safe_load import damaged, load_safely

SAFETENSORS_SETTINGS = "config"
"""Where the metadata of our safetensors files hold DPOT's settings, as JSON."""

_ANCHOR = "pos_embed"  # a tensor that every DPOT has at its top level: what stands before it is the prefix


class Checkpoint(NamedTuple):
    """What a checkpoint file holds of a DPOT.

    Attributes:
        tensors: the network's tensors by name, without any prefix, on the CPU. They may be mapped from the file.
        settings: the saved settings (`args` of the released format, `hyper_parameters` of Lightning), as they
            were named there; empty if there are none.
    """

    tensors: dict[str, Tensor]
    settings: dict[str, Any]


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a DPOT's tensors and settings from a file, without ever running code from it.

    Tensors are mapped into memory where the format allows it, so that what is not used, such as an optimizer's state,
    is not read, and large files are not held twice.

    Args:
        path: file in the released format ({'model', 'args', ...}, names with or without 'module.'), a plain
            state dict, a Lightning checkpoint ('state_dict', any prefix such as 'network.'), or safetensors.

    Returns:
        Tensors and settings.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is damaged, holds more than tensors and plain values, or holds no DPOT.
        ImportError: for a safetensors file, if the package safetensors is not installed.
    """
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"Expected argument `path` to be an existing checkpoint file, but got {str(path)!r}.")
    if file.suffix == ".safetensors":
        return _read_safetensors(file)
    content = load_safely(file)
    if not isinstance(content, Mapping):
        raise ValueError(
            f"Expected argument `path` to be a checkpoint that holds a dictionary, but {str(path)!r} holds "
            f"a {type(content).__name__}."
        )
    for key in ("model", "state_dict"):
        if isinstance(content.get(key), Mapping):
            return Checkpoint(_strip_prefix(content[key], path), _settings(content))
    return Checkpoint(_strip_prefix(content, path), {})


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


def _read_safetensors(path: Path) -> Checkpoint:
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(
            f'{str(path)!r} needs the package safetensors: pip install "lightning-farms[safetensors]"'
        ) from error
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        settings = json.loads(metadata.get(SAFETENSORS_SETTINGS, "{}"))
    except (SafetensorError, ValueError) as error:
        raise damaged(path, error) from error
    return Checkpoint(_strip_prefix(tensors, path), settings if isinstance(settings, dict) else {})


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
