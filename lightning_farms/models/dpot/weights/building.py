"""Building a DPOT from a checkpoint, and converting checkpoints."""

from __future__ import annotations

import os
import warnings
from collections.abc import Collection
from typing import TYPE_CHECKING, NamedTuple, cast

import torch

from lightning_farms.models.dpot._afno import Activation
from lightning_farms.models.dpot.weights._reading import Checkpoint, infer_sizes, read_checkpoint
from lightning_farms.models.dpot.weights.loading import Component, left_without_being_asked, plan_loading
from lightning_farms.models.dpot.weights.saving import write_checkpoint

if TYPE_CHECKING:
    from lightning_farms.models.dpot.network import DPOT, DPOTConfig

_NOT_IN_SHAPES = ("modes", "act")


class Converted(NamedTuple):
    """What was written.

    Attributes:
        tensors: how many.
        parameters: how many numbers they hold.
        config: the settings that were written with them.
    """

    tensors: int
    parameters: int
    config: DPOTConfig


def build_from_checkpoint(
    cls: type[DPOT],
    path: str | os.PathLike[str],
    overrides: DPOTConfig,
    *,
    components: Collection[Component] | None = None,
    adapt: bool = False,
) -> DPOT:
    """Build the network that a checkpoint holds, with other settings where they are given, and load it.

    Initial values are drawn only if some are needed. The report of the loading is the network's `load_report`.

    Args:
        cls: DPOT or a subclass.
        path: checkpoint file.
        overrides: keyword arguments of DPOT that replace what the file says.
        components: what to load; everything when left out.
        adapt: whether to make tensors of other sizes fit.

    Returns:
        The network on the default device, in training mode.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read safely, holds no DPOT, or its tensors do not fit.

    Warns:
        UserWarning: if nothing says `modes` and `act`, so that the defaults are used, or if weights that were to be
            loaded keep their initial values.
    """
    checkpoint = read_checkpoint(path)
    config = _config(checkpoint, path, overrides)
    with torch.device("meta"):
        model = cls(**config)
    unknown = [name for name in _NOT_IN_SHAPES if name not in config]
    if unknown:
        used = ", ".join(f"{name}={model.config[name]!r}" for name in unknown)  # type: ignore[literal-required]
        message = f"{os.fspath(path)!r} does not say {' and '.join(unknown)}; using {used}. Pass keywords to choose."
        warnings.warn(message, UserWarning, stacklevel=3)
    plan = plan_loading(model, checkpoint, path, components=components, adapt=adapt)
    if plan.report.skipped:
        model = cls(**config)
    else:
        model.to_empty(device=torch.get_default_device())
    model.load_state_dict(plan.tensors, strict=False)
    model.load_report = plan.report
    if left_without_being_asked(plan.report):
        warnings.warn(f"Not everything could be loaded. {plan.report}", UserWarning, stacklevel=3)
    return model


def convert_checkpoint(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    modes: int | None = None,
    act: Activation | None = None,
) -> Converted:
    """Write the DPOT that a checkpoint holds in another format.

    That is safetensors if the target's suffix says so, or else the released format. Tensors keep
    their values and precision; an optimizer's state and other things in the file are left out.

    Args:
        path: the checkpoint.
        target: where to write; an existing file is replaced, missing folders are made.
        modes: the network's number of modes, if the file does not say it or is wrong.
        act: the network's activation, likewise.

    Returns:
        What was written.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read safely, holds no complete DPOT, or does not say `modes` or `act`.
        ImportError: for safetensors, if the package safetensors is not installed.
    """
    from lightning_farms.models.dpot.network import DPOT

    given = {name: value for name, value in (("modes", modes), ("act", act)) if value is not None}
    checkpoint = read_checkpoint(path)
    config = _config(checkpoint, path, cast("DPOTConfig", given))
    unknown = [f"`{name}`" for name in _NOT_IN_SHAPES if name not in config]
    if unknown:
        plural = "s" if len(unknown) > 1 else ""
        raise ValueError(
            f"Expected argument{plural} {' and '.join(unknown)} to be given, as {os.fspath(path)!r} does not say what "
            "the network was trained with."
        )
    with torch.device("meta"):
        model = DPOT(**config)
    tensors = plan_loading(model, checkpoint, path).tensors
    write_checkpoint({name: tensors[name] for name in model.state_dict()}, model.config, target)
    return Converted(len(tensors), sum(tensor.numel() for tensor in tensors.values()), model.config)


def _config(checkpoint: Checkpoint, path: str | os.PathLike[str], overrides: DPOTConfig) -> DPOTConfig:
    return cast("DPOTConfig", infer_sizes(checkpoint, path) | dict(overrides))
