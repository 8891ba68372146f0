"""Data modules: PDEBench's 2D compressible flow (with a simulator that writes its format), CIFAR, and digits."""

from lightning_farms.data.cfd_data_module import CFDDataModule
from lightning_farms.data.cifar_data_module import CIFARDataModule
from lightning_farms.data.digits_data_module import DigitsDataModule
from lightning_farms.data.download.catalogue import OFFICIAL_FILES, OfficialFile, official_file
from lightning_farms.data.download.pdebench import download_pdebench
from lightning_farms.data.fields.file_set import Coordinates
from lightning_farms.data.fields.flow_statistics import FlowStatistics, flow_statistics
from lightning_farms.data.fields.indexing import Split, WindowKey, epoch_windows, split_trajectories
from lightning_farms.data.fields.pdebench import FileShape, PDEBenchFile
from lightning_farms.data.fields.trajectories import FilePart, Trajectories
from lightning_farms.data.fields.windows import EvaluationTrajectories, TrainingWindows, WindowSampler
from lightning_farms.data.fields.writer import simulate_to_file, write_pdebench
from lightning_farms.data.image_data_module import ImageDataModule
from lightning_farms.data.images.cifar import download_cifar, read_cifar
from lightning_farms.data.simulation.flows import CFDSimulation, SimulationConfig, simulate_cfd
from lightning_farms.data.simulation.initial_conditions import random_initial_state
from lightning_farms.data.simulation.solver import integrate

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
