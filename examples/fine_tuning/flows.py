"""The flows of a study: simulated once into files that later calls reuse, and shares of the training flows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments import Clock
from fine_tuning.study import Regime, Study

from lightning_farms.data import CFDDataModule, PDEBenchFile, SimulationConfig, simulate_to_file
from lightning_farms.data.fields.indexing import split_trajectories
from lightning_farms.data.simulation.flows import SIMULATOR_VERSION

_FIRST_SEED = {"train": 0, "val": 9_000_000, "test": 9_100_000, "pretrain": 9_200_000}  # of each purpose's files
_OWN_SPLIT = {"val_fraction": 0.1}  # how a file given by the user is split


def simulated(
    study: Study, regime: Regime, purpose: str, count: int, folder: Path, clock: Clock, device: str
) -> list[Path]:
    """Return the files of a regime and purpose; missing ones are simulated, one after the other.

    Args:
        study: the study, for the resolution and the size of files.
        regime: the kind of flow.
        purpose: `train`, `val`, `test` or `pretrain`; no two share an initial state.
        count: number of flows.
        folder: folder of the files.
        clock: tells when to stop between two files.
        device: where to compute.

    Returns:
        The files, in order.

    Raises:
        OutOfTimeError: the time is over before all files exist.
    """
    paths = []
    for number, start in enumerate(range(0, count, study.flows_a_file)):
        config = SimulationConfig(
            trajectories=min(study.flows_a_file, count - start), resolution=study.resolution, mach=regime.mach,
            eta=regime.eta, zeta=regime.eta, seed=_FIRST_SEED[purpose] + number,
        )  # fmt: skip
        name = f"M{regime.mach:g}_eta{regime.eta:g}_{study.resolution}_{purpose}{number}_n{config.trajectories}"
        paths.append(folder / f"{name}_v{SIMULATOR_VERSION}.hdf5")
        if not paths[-1].exists():
            clock.check()
            simulate_to_file(paths[-1], config, device=device, progress=False)
    return paths


def files(study: Study, regime: Regime | None, folder: Path, clock: Clock, device: str) -> dict[str, Any]:
    """Return the files of a regime (None: the study's own file) as arguments of CFDDataModule."""
    if regime is None:
        return {"path": study.path, **_OWN_SPLIT}
    purposes = zip(("train", "val", "test"), ("path", "val_path", "test_path"), study.flows, strict=True)
    return {
        argument: simulated(study, regime, purpose, count, folder, clock, device)
        for purpose, argument, count in purposes
    }


def all_but_every_kth(count: int, fraction: float) -> list[int]:
    """Return the places out of `count` to leave out for a share: all but 0, k, 2 k, ..., with k = 1 / fraction rounded.

    Example:
        >>> all_but_every_kth(10, 0.25)
        [1, 2, 3, 5, 6, 7, 9]
    """
    step = round(1 / fraction)
    return [place for place in range(count) if place % step]


def _skipped(paths: Sequence[Path], fraction: float, *, separate: bool) -> dict[str, list[int]]:
    """Return {file: numbers of its training flows to leave out, all but every k-th}."""
    left_out = {}
    for path in paths:
        count = PDEBenchFile(path).shape.trajectories
        pool = split_trajectories(count, separate_test=separate, **({} if separate else _OWN_SPLIT)).train
        left_out[str(path)] = [pool[place] for place in all_but_every_kth(len(pool), fraction)]
    return left_out


def data_module(
    study: Study, given: Mapping[str, Any], *, fraction: float = 1.0, seed: int = 0, workers: int = 0
) -> CFDDataModule:
    """Build the data of a training, whose seed chooses the windows and their order, and a random subset."""
    share: dict[str, Any] = {}
    if fraction < 1 and study.subset == "random":
        share = {"train_fraction": fraction, "subset_seed": seed}
    elif fraction < 1:
        paths = given["path"] if isinstance(given["path"], list) else [given["path"]]
        share = {"skip": _skipped(paths, fraction, separate="test_path" in given)}
    return CFDDataModule(
        **given, **share, batch_size=study.batch_size, windows_per_trajectory=study.windows, seed=seed,
        num_workers=workers,
    )  # fmt: skip
