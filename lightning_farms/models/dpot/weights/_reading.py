"""Reading a DPOT from a checkpoint file: its tensors, without any prefix, and its settings."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from lightning_farms.common.checkpoints.files import StoredCheckpoint, read_stored
from lightning_farms.common.checkpoints.safe_load import damaged
from lightning_farms.common.image_size import plain_size
from lightning_farms.models.dpot.config import DPOTConfig

SAFETENSORS_SETTINGS = "config"
"""The metadata key under which our safetensors files hold DPOT's settings, as JSON."""

_ANCHOR = "pos_embed"  # a tensor that every DPOT has at its top level; what precedes its name is the prefix


_DEEPEST, _MOST_SETTINGS = 64, 100_000


class Checkpoint(NamedTuple):
    """A DPOT's tensors and settings, as a checkpoint file holds them."""

    tensors: dict[str, Tensor]  # without any prefix, on the CPU; they may be mapped from the file
    settings: dict[str, Any]  # named as in the file; empty if there are none


def read_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a DPOT's tensors and settings from a file, without ever running code from it.

    Tensors are mapped into memory if the format allows it, so that unused ones, such as an optimizer's state, are not
    read, and large files are not held twice.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"Expected argument `path` to be an existing checkpoint file, but got {str(path)!r}.")
    stored = read_stored(path)
    return Checkpoint(_strip_prefix(stored.tensors, path), _settings(stored, path))


def infer_sizes(checkpoint: Checkpoint, path: str | os.PathLike[str]) -> DPOTConfig:
    """Infer DPOT's settings from the shapes of its tensors, and take the others from the saved settings.

    Only `modes` and `act` do not show in the shapes; they are in the result only if the file has them.
    """
    tensors = checkpoint.tensors
    try:
        shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        _, embed_dim, rows, columns = shapes["pos_embed"]
        hidden, stem_inputs, patch_size, _ = shapes["patch_embed.proj.0.weight"]
        out_channels = (hidden - 3) // patch_size
        sizes: DPOTConfig = {
            "img_size": plain_size((rows * patch_size, columns * patch_size)),
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
    saved = checkpoint.settings.get("depth", checkpoint.settings.get("n_layers"))
    if isinstance(saved, int) and saved > sizes["depth"]:
        raise ValueError(
            f"Expected {os.fspath(path)!r} to hold the {saved} blocks that its settings tell, but it holds "
            f"{sizes['depth']}: some of its tensors are missing. Take the whole file."
        )
    if checkpoint.settings.get("modes") is not None:
        sizes["modes"] = checkpoint.settings["modes"]
    if checkpoint.settings.get("act") is not None:
        sizes["act"] = checkpoint.settings["act"]
    return sizes


def _strip_prefix(tensors: Mapping[str, Tensor], path: str | os.PathLike[str]) -> dict[str, Tensor]:
    prefixes = [name.removesuffix(_ANCHOR) for name in tensors if name == _ANCHOR or name.endswith(f".{_ANCHOR}")]
    if len(prefixes) != 1:
        found = f"{len(prefixes)} of them, under {prefixes}" if prefixes else f"no tensor `{_ANCHOR}`"
        raise ValueError(
            f"Expected argument `path` to be a checkpoint that holds one DPOT, but {os.fspath(path)!r} holds {found}. "
            "Save the state dict of the DPOT alone."
        )
    prefix = prefixes[0]
    return {name.removeprefix(prefix): tensors[name] for name in tensors if name.startswith(prefix)}


def _settings(stored: StoredCheckpoint, path: str | os.PathLike[str]) -> dict[str, Any]:
    """The saved settings of DPOT: JSON, or a Namespace or dictionary, possibly nested as LightningCLI writes it."""
    try:
        of_safetensors = json.loads(stored.metadata.get(SAFETENSORS_SETTINGS, "{}"))
    except ValueError as error:
        raise damaged(path, error) from error
    if of_safetensors:
        return of_safetensors if isinstance(of_safetensors, dict) else {}
    saved = stored.beside.get("args", stored.beside.get("hyper_parameters"))
    settings = vars(saved) if isinstance(saved, argparse.Namespace) else saved
    return _find_settings(settings, path) if isinstance(settings, Mapping) else {}


def _find_settings(settings: Mapping[str, Any], path: str | os.PathLike[str]) -> dict[str, Any]:
    """The first dictionary with DPOT's settings, depth first; limited, as a file may nest them without end."""
    waiting: list[tuple[object, int]] = [(settings, 0)]
    for _ in range(_MOST_SETTINGS):
        if not waiting:
            return {}
        value, depth = waiting.pop()
        part = vars(value) if isinstance(value, argparse.Namespace) else value
        if not isinstance(part, Mapping):
            continue
        if "modes" in part or "act" in part:
            return dict(part)
        if depth == _DEEPEST:
            raise damaged(path, f"its settings are nested more than {_DEEPEST} deep")
        waiting += [(child, depth + 1) for child in reversed(list(part.values()))]
    raise damaged(path, f"its settings have more than {_MOST_SETTINGS} entries")
