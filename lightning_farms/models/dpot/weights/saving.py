"""Writing DPOT checkpoints: in the released format, or as safetensors."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_farms.common.atomic import complete_or_nothing
from lightning_farms.common.extras import import_extra
from lightning_farms.common.torch_writing import save_to
from lightning_farms.models.dpot.config import DPOTConfig
from lightning_farms.models.dpot.weights._network import ConfiguredNetwork
from lightning_farms.models.dpot.weights._reading import SAFETENSORS_SETTINGS

_RELEASED_NAMES = {
    "img_size": "res",
    "in_timesteps": "T_in",
    "out_timesteps": "T_bundle",
    "embed_dim": "width",
    "depth": "n_layers",
    "n_cls": "n_class",
}


def save_weights(model: ConfiguredNetwork, path: str | os.PathLike[str]) -> None:
    """Write a DPOT's weights and settings: as safetensors if the suffix says so, or else in the released format.

    The released format is a pickle of {'model': tensors, 'args': Namespace}, with the original program's names for
    tensors and options, so that it can load the file like one of its own. Safetensors files hold the settings as JSON
    in their metadata. The file appears complete or not at all: it is written under another name, then renamed.

    Args:
        model: the network; it is not changed.
        path: file to write; an existing one is replaced, missing folders are created.

    Raises:
        ImportError: for safetensors, if the package safetensors is not installed.

    Example:
        >>> import tempfile
        >>> from lightning_farms.models import DPOT
        >>> model = DPOT(img_size=16, patch_size=4, embed_dim=8, depth=1, n_blocks=2, act="silu")
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_weights(model, f"{folder}/dpot.pth")
        ...     DPOT.from_checkpoint(f"{folder}/dpot.pth").config["act"]
        'silu'
    """
    write_checkpoint(model.state_dict(), model.config, path)


def write_checkpoint(tensors: Mapping[str, Tensor], config: DPOTConfig, path: str | os.PathLike[str]) -> None:
    """Write tensors and settings as :func:`save_weights` does."""
    target = Path(path)
    plain = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
    settings = dict(config)
    write = _write_safetensors if target.suffix == ".safetensors" else _write_released
    with complete_or_nothing(target) as draft:
        write(plain, settings, draft)


def _write_released(tensors: dict[str, Tensor], settings: dict[str, Any], path: Path) -> None:
    save_to({"model": tensors, "args": _released_args(settings)}, path)


def _write_safetensors(tensors: dict[str, Tensor], settings: dict[str, Any], path: Path) -> None:
    import_extra("safetensors", extra="safetensors", what="Writing safetensors")
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
    path.touch()
    readers = path.stat().st_mode  # save_file creates files that only their owner can read
    try:
        save_file(contiguous, path, metadata={"format": "pt", SAFETENSORS_SETTINGS: json.dumps(settings)})
    except SafetensorError as error:
        raise OSError(str(error)) from error
    path.chmod(readers)


def _released_args(settings: dict[str, Any]) -> argparse.Namespace:
    """The settings with the names and types of the original program's options, and those that it does not have."""
    renamed = {_RELEASED_NAMES.get(name, name): value for name, value in settings.items()}
    ratio = settings["mlp_ratio"]
    as_there = {
        "model": "DPOT",
        "n_channels": settings["in_channels"],
        "normalize": int(settings["normalize"]),
        "mlp_ratio": int(ratio) if ratio == int(ratio) else ratio,
    }
    return argparse.Namespace(**renamed | as_there)
