"""Configurations in JSON files beside a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning_farms.common.checkpoints._json_file import JSONError, read_json_file

_ADAPTER = "adapter_config.json"


def config_beside(path: Path) -> Mapping[str, Any]:
    """Read `config.json` in the same folder, and an adapter's configuration under `"adapter"`; empty without them."""
    folder = path if path.is_dir() else path.parent
    config = dict(read_json(folder / "config.json")) if path.name != "config.json" else {}
    adapter = read_json(folder / _ADAPTER)
    return {**config, "adapter": adapter} if adapter else config


def read_json(file: Path) -> Mapping[str, Any]:
    """Read a dictionary from a JSON file; empty if there is none, or it cannot be read."""
    try:
        content = read_json_file(file) if file.is_file() else {}
    except (JSONError, OSError):
        return {}
    return content if isinstance(content, dict) else {}
