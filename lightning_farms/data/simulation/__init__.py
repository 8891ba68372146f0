"""Simulated 2D compressible flows."""

from lightning_farms.data.simulation.flows import CFDSimulation, SimulationConfig, simulate_cfd
from lightning_farms.data.simulation.initial_conditions import random_initial_state
from lightning_farms.data.simulation.solver import integrate

__all__ = ["CFDSimulation", "SimulationConfig", "integrate", "random_initial_state", "simulate_cfd"]
