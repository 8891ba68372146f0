"""Path of a simulated set in the cache, and its simulation if it is missing."""

import hashlib
import json
from pathlib import Path

from lightning_farms.data.fields.pdebench import PDEBenchFile
from lightning_farms.data.fields.writer import simulate_to_file
from lightning_farms.data.simulation.flows import SIMULATOR_VERSION, SimulationConfig


def simulated_set(folder: Path, config: SimulationConfig) -> Path:
    """Return the file of a set in a cache folder; its name is unique to the settings."""
    settings = json.dumps({"version": SIMULATOR_VERSION, **config.settings()}, sort_keys=True)
    digest = hashlib.sha256(settings.encode()).hexdigest()[:10]
    return folder / (
        f"2D_CFD_Sim_M{config.mach:g}_Eta{config.eta:g}_Zeta{config.zeta:g}_periodic_{config.resolution}"
        f"_n{config.trajectories}_seed{config.seed}_{digest}.hdf5"
    )


def simulate_unless_kept(path: Path, config: SimulationConfig) -> None:
    """Simulate a set that is missing; for a damaged one, raise an error that says what to do."""
    if not path.exists():
        simulate_to_file(path, config)
        return
    try:
        PDEBenchFile(path)
    except (OSError, ValueError) as error:
        raise OSError(f"{error} This is a simulated set that was kept: delete it, and it is made anew.") from error
