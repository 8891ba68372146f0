"""Writing simulated flows in the layout of PDEBench's 2D CFD files, whole or not at all."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
import torch

from lightning_farms.common.arguments import check_at_least
from lightning_farms.common.atomic import complete_or_nothing
from lightning_farms.common.devices import chosen_device
from lightning_farms.common.progress import progress_bars
from lightning_farms.common.room import check_room
from lightning_farms.data.fields.pdebench import FIELDS
from lightning_farms.data.simulation.flows import CFDSimulation, SimulationConfig, simulate_cfd

_CELLS_AT_ONCE = {"cpu": 2**15, "cuda": 2**21}  # as many as a processor's cache holds; as fill an accelerator
_SPARE = 2**14  # bytes of a file besides the fields
_CELLS_FOR_THREADS = 2**18  # cells of a batch from which more than one thread pays even on a busy machine


def write_pdebench(path: str | os.PathLike[str], simulation: CFDSimulation) -> None:
    """Write trajectories to one HDF5 file laid out as PDEBench's.

    Datasets density, pressure, Vx, Vy (B, T, X, Y) in float32, contiguous; x-coordinate, y-coordinate; t-coordinate
    with one entry more than there are frames; root attributes eta, zeta and M. The file appears under its name only
    once it is complete and on disk; an existing one is replaced.

    Args:
        path: file to write; its folder is created if need be.
        simulation: the trajectories, at least two frames.

    Raises:
        ValueError: if the fields' shapes disagree with each other or with the coordinates.

    Example:
        >>> import tempfile
        >>> from lightning_farms.data import PDEBenchFile
        >>> flow = simulate_cfd(SimulationConfig(trajectories=2, resolution=8, frames=3))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_pdebench(f"{folder}/flow.hdf5", flow)
        ...     PDEBenchFile(f"{folder}/flow.hdf5").shape
        FileShape(trajectories=2, frames=3, x=8, y=8)
    """
    shape = tuple(simulation.density.shape)
    coordinates = (len(simulation.t), len(simulation.x), len(simulation.y))
    shapes = [tuple(field.shape) for field in (simulation.pressure, simulation.vx, simulation.vy)]
    if any(other != shape for other in shapes) or shape[1:] != coordinates:
        raise ValueError(
            "Expected argument `simulation` to hold fields of one shape (B, T, X, Y) that fits its coordinates, "
            f"but got {[shape, *shapes]} and coordinates of lengths {coordinates}."
        )
    with _draft(Path(path), simulation.density.numel()) as file:
        _create(file, simulation, shape[0])
        _write_part(file, simulation, 0)


def simulate_to_file(
    path: str | os.PathLike[str],
    config: SimulationConfig | None = None,
    *,
    batch_size: int | None = None,
    device: str | torch.device = "cpu",
    progress: bool = True,
) -> None:
    """Simulate a set and write it in PDEBench's layout, a batch of trajectories at a time.

    Args:
        path: file to write; its folder is created if need be. It appears only once it is complete.
        config: the set's settings; the defaults of `SimulationConfig` when left out.
        batch_size: number of trajectories simulated at once, at least 1; memory grows with it. When left out, as many
            as the device computes fastest. It changes nothing in the file beyond rounding.
        device: where to compute; "auto" for CUDA if it is available.
        progress: whether to show a progress bar, on stderr.

    Raises:
        ValueError: for a batch size out of range, or a CUDA device where there is none.
        RuntimeError: if a trajectory's density or pressure leaves the positive numbers.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     config = SimulationConfig(trajectories=2, resolution=8, frames=3)
        ...     simulate_to_file(f"{folder}/flow.hdf5", config, progress=False)
        ...     os.listdir(folder)
        ['flow.hdf5']
    """
    config = SimulationConfig() if config is None else config
    device = chosen_device(device)
    if batch_size is None:
        cells = _CELLS_AT_ONCE["cpu" if device.type == "cpu" else "cuda"]
        batch_size = max(1, cells // config.resolution**2)
    check_at_least(1, batch_size=batch_size)
    starts = range(0, config.trajectories, batch_size)
    with (
        _draft(Path(path), config.trajectories * config.frames * config.resolution**2) as file,
        progress_bars(unit="percent", show=progress, stays=True) as start_bar,
        _threads_for(min(batch_size, config.trajectories) * config.resolution**2),
    ):
        advance = start_bar(
            f"Simulating {config.trajectories} flows at {config.resolution}x{config.resolution}",
            len(starts) * (config.frames - 1),
            0,
        )
        for start in starts:
            part = simulate_cfd(
                config,
                indices=range(start, min(start + batch_size, config.trajectories)),
                device=device,
                on_frame=lambda: advance(1),
            )
            if start == 0:
                _create(file, part, config.trajectories)
            _write_part(file, part, start)


@contextmanager
def _draft(path: Path, numbers: int) -> Iterator[h5py.File]:
    """Open a file that gets its name once it is complete, and check that there is room for fields of `numbers` values.

    The room is checked first because HDF5's own error on a full disk is hard to understand.
    """
    with complete_or_nothing(path) as temporary:
        check_room(temporary, 4 * len(FIELDS) * numbers + _SPARE, "the trajectories", "choose another folder")
        with h5py.File(temporary, "x") as file:
            yield file


def _create(file: h5py.File, part: CFDSimulation, trajectories: int) -> None:
    for name in FIELDS:
        file.create_dataset(name, (trajectories, *part.density.shape[1:]), np.float32)
    t = part.t.double()
    file["x-coordinate"] = part.x.numpy().astype(np.float32)
    file["y-coordinate"] = part.y.numpy().astype(np.float32)
    file["t-coordinate"] = torch.cat((t, 2 * t[-1:] - t[-2:-1])).numpy().astype(np.float32)
    file.attrs.update({"eta": part.eta, "zeta": part.zeta, "M": part.mach})


def _write_part(file: h5py.File, part: CFDSimulation, start: int) -> None:
    for name, field in zip(FIELDS, (part.density, part.pressure, part.vx, part.vy), strict=True):
        file[name][start : start + len(field)] = field.numpy().astype(np.float32)


@contextmanager
def _threads_for(cells: int) -> Iterator[None]:
    """Use one thread for few cells: several would wait for each other, on a busy machine ten times as long.

    The setting is restored at the end.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if cells < _CELLS_FOR_THREADS else threads)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
