"""Allocations of sparsity to a network's layers: by alphas, by weights and inputs, by depth alone, or from a file."""

from lightning_farms.pruning.allocation.activations import DLPAllocation, OWLAllocation
from lightning_farms.pruning.allocation.allocate import WeightsSubject, allocate, allocate_from_alphas
from lightning_farms.pruning.allocation.base import (
    Allocation,
    DensityAllocation,
    Figures,
    Granularity,
    LinearAllocation,
    Subject,
)
from lightning_farms.pruning.allocation.controls import RampAllocation, UniformAllocation
from lightning_farms.pruning.allocation.from_file import FileAllocation
from lightning_farms.pruning.allocation.spectral import FARMSAllocation, WholeMatrixAllocation

ALLOCATIONS: dict[str, type[Allocation]] = {
    kind.label: kind
    for kind in (
        FARMSAllocation,
        WholeMatrixAllocation,
        OWLAllocation,
        DLPAllocation,
        RampAllocation,
        UniformAllocation,
        FileAllocation,
    )
}
"""The allocations, keyed by their names on the command line."""

__all__ = [
    "ALLOCATIONS",
    "Allocation",
    "DLPAllocation",
    "DensityAllocation",
    "FARMSAllocation",
    "Figures",
    "FileAllocation",
    "Granularity",
    "LinearAllocation",
    "OWLAllocation",
    "RampAllocation",
    "Subject",
    "UniformAllocation",
    "WeightsSubject",
    "WholeMatrixAllocation",
    "allocate",
    "allocate_from_alphas",
]
