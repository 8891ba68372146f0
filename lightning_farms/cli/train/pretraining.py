"""A network's starting weights: from a checkpoint, or from a brief pre-training on another flow, kept for reuse."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_farms.data.cfd_data_module import CFDDataModule
from lightning_farms.data.fields.pdebench import PDEBenchFile
from lightning_farms.data.simulation.flows import SimulationConfig
from lightning_farms.models.dpot.network import DPOT
from lightning_farms.models.dpot.weights.report import Component
from lightning_farms.models.dpot.weights.saving import save_weights
from lightning_farms.models.operator_module import OperatorModule

_PRETRAINING_VERSION = 1


@dataclass(frozen=True)
class Pretraining:
    """Source of the starting weights: a file, a brief pre-training on another flow regime, or neither.

    Args:
        checkpoint: File with the starting weights of a DPOT (the released format, a plain state dict, safetensors, or a
            Lightning checkpoint), or the name of a released one, such as "tiny", which is downloaded once. Weights for
            another image size, other channels or frames are adapted, and a report says how. Overrides `epochs`.
        components: The parts of the checkpoint to load, as a list; all by default.
        epochs: Epochs of pre-training if there is no checkpoint; 0 starts from random weights. The resulting weights
            are kept and reused by later runs with the same settings.
        lr: Learning rate of the pre-training, the same for all layers. Positive.
        batch_size: Training items per batch of the pre-training, at least 1.
        windows_per_trajectory: Training items per trajectory and epoch of the pre-training, at least 1.
        seed: Seed of the initial weights and the order of the data, at least 0; independent of `seed_everything`.
        cache_dir: Folder for pre-trained weights; by default that of the simulated sets.
        path: PDEBench file, or one with the data's `fields`, to pre-train on, thinned out to the data's resolution. By
            default, a set is simulated.
        simulation: The simulated pre-training set. Its `resolution` follows the data's and need not be given.
    """

    checkpoint: str | None = None
    components: list[Component] | None = None
    epochs: int = 0
    lr: float = 1e-3
    batch_size: int = 8
    windows_per_trajectory: int = 1
    seed: int = 0
    cache_dir: str | None = None
    path: str | None = None
    simulation: SimulationConfig = field(default_factory=lambda: SimulationConfig(mach=1.0, eta=0.1, zeta=0.1, seed=1))

    def __post_init__(self) -> None:
        if self.epochs < 0:
            raise ValueError(f"Expected argument `epochs` to be at least 0, but got {self.epochs}.")
        if self.components is not None and self.checkpoint is None:
            raise ValueError(
                f"Expected argument `checkpoint` of the pre-training to be given with `components`, but got "
                f"{self.components} of none."
            )
        if self.simulation.trajectories < 2:
            raise ValueError(
                "Expected argument `simulation.trajectories` of the pre-training to be at least 2, but got "
                f"{self.simulation.trajectories}."
            )


def pretrained_path(
    pretraining: Pretraining, network: DPOT, data: CFDDataModule, arithmetic: Mapping[str, object] | None = None
) -> Path:
    """Return the cache file for the weights that result from these settings.

    Args:
        pretraining: Settings of the pre-training.
        network: The network, for its sizes.
        data: The data of the main run, for the layout of the training items.
        arithmetic: Settings of the Trainer that change the weights, such as its precision.

    Returns:
        The path; its name holds a hash of everything that the weights depend on.
    """
    settings = {
        **asdict(pretraining),
        "version": _PRETRAINING_VERSION,
        "set": _set_name(_regime(pretraining, data)),
        "network": network.config,
        "channels": data.channels,
        **(arithmetic or {}),
    }
    for name in ("checkpoint", "components", "cache_dir", "path", "simulation"):  # the set's name tells the last two
        del settings[name]
    text = json.dumps(settings, sort_keys=True)
    folder = data.cache_dir if pretraining.cache_dir is None else Path(pretraining.cache_dir)
    return folder / f"pretrained-{hashlib.sha256(text.encode()).hexdigest()[:12]}.pth"


def pretrain(pretraining: Pretraining, network: DPOT, data: CFDDataModule, trainer: Trainer, path: Path) -> None:
    """Pre-train a copy of a network, initialised by its own seed, and write its weights.

    The random number generators are left as they were found, and the file appears complete or not at all.

    Args:
        pretraining: Settings of the pre-training.
        network: The network, for its sizes; it is not changed.
        data: The data of the main run, for the layout of the training items; not read.
        trainer: Runs the pre-training.
        path: File to write.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(path.parent, os.W_OK):
        raise PermissionError(f"Expected argument `cache_dir` to be a folder to write to, but {path.parent} is not.")
    with isolate_rng():
        torch.manual_seed(pretraining.seed)
        twin = DPOT(**network.config)
        trainer.fit(OperatorModule(twin, lr=pretraining.lr), datamodule=_regime(pretraining, data))
    save_weights(twin, path)


def _regime(pretraining: Pretraining, data: CFDDataModule) -> CFDDataModule:
    """Build the data to pre-train on, laid out and scaled like those of the main run."""
    cells = data.grid_size
    simulation = replace(pretraining.simulation, resolution=cells[0])
    trajectories, stride = simulation.trajectories, 1
    layout: dict[str, Any] = {"channel_order": data.channel_order}
    if pretraining.path is not None:
        layout |= {"fields": data.fields, "axes": data.axes}
        shape = PDEBenchFile(pretraining.path, **layout).shape
        trajectories, stride = shape.trajectories, max(1, shape.x // cells[0])
    regime = CFDDataModule(
        pretraining.path,
        cache_dir=data.cache_dir,
        batch_size=pretraining.batch_size,
        in_timesteps=data.in_timesteps,
        out_timesteps=data.out_timesteps,
        windows_per_trajectory=pretraining.windows_per_trajectory,
        stride=stride,
        time_stride=data.time_stride,
        normalize=data.normalize,
        num_workers=data.num_workers,
        seed=pretraining.seed,
        test_fraction=max(0.1, 1.5 / trajectories),  # at least one, though it is not used
        simulation=simulation,
        **layout,
    )
    if regime.channels != data.channels:
        raise ValueError(
            f"Expected argument `path` of the pre-training to be given, a file with the data's `fields`, but a set "
            f"would be simulated, of channels {list(regime.channels)} and not {list(data.channels)}."
        )
    if regime.grid_size != cells:
        (x, y), found = cells, regime.grid_size
        raise ValueError(
            f"Expected argument `path` of the pre-training to be a file of the data's {x} x {y} cells, or a multiple "
            f"of them, but {pretraining.path or 'what would be simulated'} has {found[0]} x {found[1]}."
        )
    return regime


def _set_name(regime: CFDDataModule) -> str:
    """Return a name that changes with the set: a simulation's settings and version, or a file's size and time."""
    name = regime.data_path.name
    if regime.path is not None:
        state = regime.data_path.stat()
        name = f"{name} {state.st_size} {state.st_mtime_ns} {regime.stride}"
        name += f" {regime.fields} {regime.axes}" if regime.fields else ""
    if regime.time_stride > 1:
        name += f", every {regime.time_stride} frames"
    return f"{name}, normalized" if regime.normalize else name
