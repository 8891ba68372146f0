"""Data modules: PDEBench's 2D compressible flow (with a simulator that writes its format), CIFAR, and digits."""

from lightning_farms.data.augmentation import Augmentation, Symmetry, moved
from lightning_farms.data.cfd_data_module import CFDDataModule
from lightning_farms.data.cifar_data_module import CIFARDataModule
from lightning_farms.data.digits_data_module import DigitsDataModule
from lightning_farms.data.download import OFFICIAL_FILES, OfficialFile, download_pdebench, official_file
from lightning_farms.data.fields import (
    Coordinates,
    EvaluationTrajectories,
    FilePart,
    FileShape,
    FlowStatistics,
    PDEBenchFile,
    Split,
    TrainingWindows,
    Trajectories,
    TrajectoryFiles,
    WindowKey,
    WindowSampler,
    epoch_windows,
    flow_statistics,
    simulate_to_file,
    split_trajectories,
    write_pdebench,
)
from lightning_farms.data.image_data_module import ImageDataModule
from lightning_farms.data.images import download_cifar, read_cifar
from lightning_farms.data.simulation import (
    CFDSimulation,
    SimulationConfig,
    integrate,
    random_initial_state,
    simulate_cfd,
)

__all__ = [
    "OFFICIAL_FILES",
    "Augmentation",
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
    "Symmetry",
    "TrainingWindows",
    "Trajectories",
    "TrajectoryFiles",
    "WindowKey",
    "WindowSampler",
    "download_cifar",
    "download_pdebench",
    "epoch_windows",
    "flow_statistics",
    "integrate",
    "moved",
    "official_file",
    "random_initial_state",
    "read_cifar",
    "simulate_cfd",
    "simulate_to_file",
    "split_trajectories",
    "write_pdebench",
]
