"""Building the network that a checkpoint holds."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection
from typing import TypeVar

import torch

from lightning_farms.common.warning import warn_user
from lightning_farms.models.dpot.config import NOT_IN_SHAPES, DPOTConfig
from lightning_farms.models.dpot.weights._network import ConfiguredNetwork
from lightning_farms.models.dpot.weights._reading import infer_sizes, read_checkpoint
from lightning_farms.models.dpot.weights.loading import plan_loading
from lightning_farms.models.dpot.weights.report import Component, left_without_being_asked

Network = TypeVar("Network", bound=ConfiguredNetwork)


def build_from_checkpoint(
    cls: Callable[..., Network],
    path: str | os.PathLike[str],
    overrides: DPOTConfig,
    *,
    components: Collection[Component] | None = None,
    adapt: bool = False,
) -> Network:
    """Build the network that a checkpoint holds, with overrides of its settings, and load its weights.

    Initial values are drawn only if some are needed. The network's `load_report` says what was loaded.
    """
    checkpoint = read_checkpoint(path)
    config = infer_sizes(checkpoint, path) | overrides
    with torch.device("meta"):
        model = cls(**config)
    unknown = [name for name in NOT_IN_SHAPES if name not in config]
    if unknown:
        used = ", ".join(f"{name}={model.config[name]!r}" for name in unknown)  # type: ignore[literal-required]
        warn_user(
            f"{os.fspath(path)!r} does not tell {' and '.join(unknown)}, so that the model has {used}. Give other "
            "values as keywords."
        )
    plan = plan_loading(model, checkpoint, path, components=components, adapt=adapt)
    if plan.report.skipped:
        model = cls(**config)
    else:
        model.to_empty(device=torch.get_default_device())
    model.load_state_dict(plan.tensors, strict=False)
    model.load_report = plan.report
    if left_without_being_asked(plan.report):
        warn_user(f"Not everything could be loaded. {plan.report}")
    return model
