"""Converting a checkpoint of a DPOT to another format."""

from __future__ import annotations

import os
from typing import NamedTuple

import torch

from lightning_farms.models.dpot.config import NOT_IN_SHAPES, Activation, DPOTConfig
from lightning_farms.models.dpot.network import DPOT
from lightning_farms.models.dpot.weights._reading import infer_sizes, read_checkpoint
from lightning_farms.models.dpot.weights.loading import plan_loading
from lightning_farms.models.dpot.weights.saving import write_checkpoint


class Converted(NamedTuple):
    """A summary of what was written.

    Attributes:
        tensors: number of tensors.
        parameters: number of values in them.
        config: the settings that were written with them.
    """

    tensors: int
    parameters: int
    config: DPOTConfig


def convert_checkpoint(
    path: str | os.PathLike[str],
    target: str | os.PathLike[str],
    *,
    modes: int | None = None,
    act: Activation | None = None,
) -> Converted:
    """Convert the DPOT in a checkpoint to safetensors if the target's suffix says so, or else to the released format.

    Tensors keep their values and precision; an optimizer's state and anything else in the file are left out.

    Args:
        path: the checkpoint.
        target: file to write; an existing one is replaced, missing folders are created.
        modes: the network's number of modes, if it is missing from the file or wrong there.
        act: the network's activation, likewise.

    Returns:
        A summary of what was written.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file cannot be read safely, holds no complete DPOT, or does not say `modes` or `act`.
        ImportError: for safetensors, if the package safetensors is not installed.
    """
    checkpoint = read_checkpoint(path)
    config = infer_sizes(checkpoint, path)
    if modes is not None:
        config["modes"] = modes
    if act is not None:
        config["act"] = act
    unknown = [f"`{name}`" for name in NOT_IN_SHAPES if name not in config]
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
