"""Reading a model's configuration beside its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

_LITGPT = "model_config.yaml"


def model_config_beside(path: Path, tensors: Mapping[str, Tensor]) -> Mapping[str, Any]:
    """Return the settings in the checkpoint's folder, of `config.json` and of litgpt's `model_config.yaml`."""
    config = getattr(tensors, "config", {})
    file = (path if path.is_dir() else path.parent) / _LITGPT
    try:
        more = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return config
    return {**config, **more} if isinstance(more, dict) else config
