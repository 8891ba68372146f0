"""Data modules: PDEBench's 2D compressible flow (with a simulator that writes its format), CIFAR, and digits."""

from lightning_farms.data.cfd_data_module import CFDDataModule
from lightning_farms.data.cifar import download_cifar, read_cifar
from lightning_farms.data.cifar_data_module import CIFARDataModule
from lightning_farms.data.digits_data_module import DigitsDataModule
from lightning_farms.data.image_data_module import ImageDataModule
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
    "CIFARDataModule",
    "DigitsDataModule",
    "EvaluationTrajectories",
    "FileShape",
    "ImageDataModule",
    "PDEBenchFile",
    "SimulationConfig",
    "Split",
    "TrainingWindows",
    "WindowKey",
    "WindowSampler",
    "download_cifar",
    "epoch_windows",
    "integrate",
    "random_initial_state",
    "read_cifar",
    "simulate_cfd",
    "simulate_to_file",
    "split_trajectories",
    "write_pdebench",
]
