"""Data modules: PDEBench's 2D compressible flow (with a simulator that writes its format), CIFAR, and digits."""

from lightning_farms.data.catalogue import OFFICIAL_FILES, OfficialFile, official_file
from lightning_farms.data.cfd_data_module import CFDDataModule
from lightning_farms.data.cifar import download_cifar, read_cifar
from lightning_farms.data.cifar_data_module import CIFARDataModule
from lightning_farms.data.digits_data_module import DigitsDataModule
from lightning_farms.data.download import download_pdebench
from lightning_farms.data.file_set import Coordinates
from lightning_farms.data.flow_statistics import FlowStatistics, flow_statistics
from lightning_farms.data.image_data_module import ImageDataModule
from lightning_farms.data.indexing import Split, WindowKey, epoch_windows, split_trajectories
from lightning_farms.data.initial_conditions import random_initial_state
from lightning_farms.data.pdebench import FileShape, PDEBenchFile
from lightning_farms.data.simulation import CFDSimulation, SimulationConfig, simulate_cfd
from lightning_farms.data.solver import integrate
from lightning_farms.data.trajectories import FilePart, Trajectories
from lightning_farms.data.windows import EvaluationTrajectories, TrainingWindows, WindowSampler
from lightning_farms.data.writer import simulate_to_file, write_pdebench

__all__ = [
    "OFFICIAL_FILES",
    "CFDDataModule",
    "CFDSimulation",
    "CIFARDataModule",
    "Coordinates",
    "DigitsDataModule",
    "EvaluationTrajectories",
    "FilePart",
    "FileShape",
    "FlowStatistics",
    "ImageDataModule",
    "OfficialFile",
    "PDEBenchFile",
    "SimulationConfig",
    "Split",
    "TrainingWindows",
    "Trajectories",
    "WindowKey",
    "WindowSampler",
    "download_cifar",
    "download_pdebench",
    "epoch_windows",
    "flow_statistics",
    "integrate",
    "official_file",
    "random_initial_state",
    "read_cifar",
    "simulate_cfd",
    "simulate_to_file",
    "split_trajectories",
    "write_pdebench",
]
