"""PDEBench 2D compressible-flow data: reader, data module, and a simulator that writes the same format."""

from lightning_farms.data.cfd_data_module import CFDDataModule
from lightning_farms.data.indexing import Split, WindowKey, epoch_windows, split_trajectories
from lightning_farms.data.initial_conditions import random_initial_state
from lightning_farms.data.pdebench import FileShape, PDEBenchFile
from lightning_farms.data.simulation import CFDSimulation, SimulationConfig, simulate_cfd
from lightning_farms.data.solver import integrate
from lightning_farms.data.windows import EvaluationTrajectories, TrainingWindows, WindowSampler
from lightning_farms.data.writer import simulate_to_file, write_pdebench

__all__ = [
    "CFDDataModule",
    "CFDSimulation",
    "EvaluationTrajectories",
    "FileShape",
    "PDEBenchFile",
    "SimulationConfig",
    "Split",
    "TrainingWindows",
    "WindowKey",
    "WindowSampler",
    "epoch_windows",
    "integrate",
    "random_initial_state",
    "simulate_cfd",
    "simulate_to_file",
    "split_trajectories",
    "write_pdebench",
]
