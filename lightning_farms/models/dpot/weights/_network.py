"""The interface of a network that checkpoints are loaded into and written from; DPOT has it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import torch

from lightning_farms.models.dpot.config import DPOTConfig
from lightning_farms.models.dpot.weights.report import LoadReport


class ConfiguredNetwork(Protocol):
    """A module that knows the keyword arguments it was built with."""

    load_report: LoadReport | None

    @property
    def config(self) -> DPOTConfig:
        """The keyword arguments that the module was built with."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state dict; this method and the next two are those of every module."""

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True) -> object: ...

    def to_empty(self, *, device: torch.device) -> object: ...
