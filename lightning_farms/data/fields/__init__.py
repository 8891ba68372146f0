"""Trajectories of fields in HDF5 files, PDEBench's and others: reading, windows of frames, writing."""

from lightning_farms.data.fields.file_check import FileFault, check_file
from lightning_farms.data.fields.flow_statistics import FlowStatistics, flow_statistics
from lightning_farms.data.fields.indexing import Split, WindowKey, epoch_windows, split_trajectories
from lightning_farms.data.fields.pdebench import FileShape, PDEBenchFile
from lightning_farms.data.fields.trajectories import Coordinates, FilePart, Trajectories
from lightning_farms.data.fields.trajectory_files import TrajectoryFiles
from lightning_farms.data.fields.windows import EvaluationTrajectories, TrainingWindows, WindowSampler
from lightning_farms.data.fields.writer import simulate_to_file, write_pdebench

__all__ = [
    "Coordinates",
    "EvaluationTrajectories",
    "FileFault",
    "FilePart",
    "FileShape",
    "FlowStatistics",
    "PDEBenchFile",
    "Split",
    "TrainingWindows",
    "Trajectories",
    "TrajectoryFiles",
    "WindowKey",
    "WindowSampler",
    "check_file",
    "epoch_windows",
    "flow_statistics",
    "simulate_to_file",
    "split_trajectories",
    "write_pdebench",
]
