"""Simulated sets of random 2D compressible flows, as tensors."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_farms.common.arguments import check_not_negative
from lightning_farms.common.devices import chosen_device
from lightning_farms.data.simulation._viscosity import STRESSES, Stress
from lightning_farms.data.simulation.initial_conditions import WINDOWED_SHARE, random_initial_state
from lightning_farms.data.simulation.solver import UnstableFlowError, integrate

SIMULATOR_VERSION = 2
"""Increased when equal settings give other numbers than before."""

_CFL, _LEAST_CFL = 0.8, 0.1


@dataclass(frozen=True, repr=False)
class SimulationConfig:
    """Settings of a simulated set; together they determine every number in it.

    About the stress: PDEBench names the compressible Navier-Stokes equations, but its files lack the mixed derivatives
    in them. Written as tau_xx = rho (A dvx/dx + C dvy/dy) and tau_xy = rho (B dvx/dy + D dvy/dx), and likewise for y, a
    fit to how its M1.0, eta = zeta = 0.1 flows change from the fifth to the sixth frame gives, in units of eta,
    A = 2.34, B = 1.00, C = 0.00, D = 0.01; the Newtonian stress has 7/3, 1, 1/3, 1. The files at M0.1, eta = zeta =
    0.01 agree with this, and finer grids agree ever better. So sets that are to resemble PDEBench's have stress
    "unmixed", the default; "full" is the physics of a Newtonian gas.

    Args:
        trajectories: number of trajectories, at least 1.
        resolution: cells along each side of the unit square, at least 8.
        frames: number of frames from time 0 to `duration`, both included, at least 2.
        mach: mean initial speed in units of the speed of sound, in [0, 2]; taken before a window is applied.
        eta: kinematic shear viscosity, at least 0, in squared box lengths per unit of time.
        zeta: kinematic bulk viscosity, at least 0, same unit.
        stress: "full" for the stress of a Newtonian gas, "unmixed" for the same without mixed derivatives, as in
            PDEBench's files.
        windowed_share: probability that a trajectory starts at rest outside a square window, in [0, 1]; by default
            the share in PDEBench's files.
        seed: seed of the initial states, at least 0. Trajectory i depends on (seed, i), not on how many there are.
        duration: time of the last frame, positive; 1 in PDEBench's files. Sound crosses the square in 0.25 to 2.5.

    Raises:
        ValueError: for a value out of range.

    Example:
        >>> SimulationConfig(trajectories=4).resolution
        32
    """

    trajectories: int = 40
    resolution: int = 32
    frames: int = 21
    mach: float = 0.1
    eta: float = 0.01
    zeta: float = 0.01
    stress: Stress = "unmixed"
    windowed_share: float = WINDOWED_SHARE
    seed: int = 0
    duration: float = 1.0

    def __repr__(self) -> str:
        return f"SimulationConfig({', '.join(f'{name}={value!r}' for name, value in self.settings().items())})"

    def __post_init__(self) -> None:
        for name, least in (("trajectories", 1), ("resolution", 8), ("frames", 2), ("seed", 0)):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < least:
                raise ValueError(f"Expected argument `{name}` to be an integer of at least {least}, but got {value!r}.")
        for name, most in (("mach", 2.0), ("windowed_share", 1.0)):
            value = getattr(self, name)
            if not 0 <= value <= most:
                raise ValueError(f"Expected argument `{name}` to be in [0, {most:g}], but got {value!r}.")
        check_not_negative(eta=self.eta, zeta=self.zeta)
        if not 0 < self.duration < math.inf:
            raise ValueError(f"Expected argument `duration` to be positive and finite, but got {self.duration!r}.")
        if self.stress not in STRESSES:
            raise ValueError(f"Expected argument `stress` to be one of {list(STRESSES)}, but got {self.stress!r}.")

    def settings(self) -> dict[str, Any]:
        """Return the settings by name, without a `duration` of 1, so that sets keep the names that they always had."""
        settings = asdict(self)
        if self.duration == 1:
            del settings["duration"]
        return settings


class CFDSimulation(NamedTuple):
    """Simulated trajectories with their coordinates.

    Args:
        density: (B, T, X, Y).
        pressure: (B, T, X, Y).
        vx: velocity along x, (B, T, X, Y).
        vy: velocity along y, (B, T, X, Y).
        x: cell centres, (X,).
        y: cell centres, (Y,).
        t: times of the frames, (T,).
        eta: kinematic shear viscosity.
        zeta: kinematic bulk viscosity.
        mach: mean initial speed in units of the speed of sound.
    """

    density: Tensor
    pressure: Tensor
    vx: Tensor
    vy: Tensor
    x: Tensor
    y: Tensor
    t: Tensor
    eta: float
    zeta: float
    mach: float


def simulate_cfd(
    config: SimulationConfig | None = None,
    *,
    indices: range | None = None,
    device: str | torch.device = "cpu",
    dtype: torch.dtype = torch.float32,
    on_frame: Callable[[], None] | None = None,
) -> CFDSimulation:
    r"""Simulate random 2D compressible flows on the periodic unit square.

    $$\partial_t \rho + \nabla \cdot (\rho v) = 0, \quad
    \rho (\partial_t v + v \cdot \nabla v) = -\nabla p + \nabla \cdot \tau, \quad
    \partial_t E + \nabla \cdot ((E + p) v - \tau v) = 0$$

    The gas is ideal with gamma 5/3, the initial states are by `random_initial_state`, and the scheme is `integrate`. It
    is an independent solver of the equations that PDEBench's 2D CFD sets solve, not a copy of PDEBench's own program.

    Args:
        config: the set's settings; the defaults of `SimulationConfig` when left out.
        indices: the part of the set to simulate; all of it when left out.
        device: where to compute; "auto" for CUDA if it is available. The result is on the CPU.
        dtype: floating type of the computation and of the result.
        on_frame: called after each frame, for a progress display.

    Returns:
        The trajectories and their coordinates.

    Raises:
        ValueError: for indices outside the set, or a CUDA device where there is none.
        UnstableFlowError: if a trajectory's density or pressure leaves the positive numbers, even with short steps.

    Example:
        >>> flow = simulate_cfd(SimulationConfig(trajectories=2, resolution=8, frames=3))
        >>> flow.density.shape, flow.t.tolist()
        (torch.Size([2, 3, 8, 8]), [0.0, 0.5, 1.0])

    Reference:
        Landau and Lifshitz, Fluid Mechanics, equations 1.2, 15.5 and 49.2.
    """
    config = SimulationConfig() if config is None else config
    indices = range(config.trajectories) if indices is None else indices
    _check_indices(indices, config.trajectories)
    initial = _initial_states(config, indices)
    with torch.no_grad():
        fields = _integrate(initial.to(chosen_device(device), dtype), config, indices, _CFL, on_frame).cpu()
    centres = (torch.arange(config.resolution, dtype=dtype) + 0.5) / config.resolution
    return CFDSimulation(
        density=fields[0],
        pressure=fields[3],
        vx=fields[1],
        vy=fields[2],
        x=centres,
        y=centres.clone(),
        t=torch.tensor(frame_times(config.frames, config.duration), dtype=dtype),
        eta=config.eta,
        zeta=config.zeta,
        mach=config.mach,
    )


def _check_indices(indices: range, trajectories: int) -> None:
    if len(indices) == 0 or min(indices) < 0 or max(indices) >= trajectories:
        raise ValueError(
            f"Expected argument `indices` to lie in [0, {trajectories}) and not be empty, but got {indices}."
        )


def _integrate(
    initial: Tensor,
    config: SimulationConfig,
    names: Sequence[int],
    cfl: float,
    on_frame: Callable[[], None] | None = None,
) -> Tensor:
    """Integrate; trajectories that become unstable are repeated on their own with steps half as long, and so on."""
    times = frame_times(config.frames, config.duration)
    flow = partial(integrate, eta=config.eta, zeta=config.zeta, stress=config.stress)
    try:
        return flow(initial, times, cfl=cfl, names=names, on_frame=on_frame)
    except UnstableFlowError as error:
        if cfl / 2 < _LEAST_CFL:
            raise
        unstable = [name in error.trajectories for name in names]
    fields = initial.new_empty((*initial.shape[:2], len(times), *initial.shape[2:]))
    for are_unstable, smaller in ((True, cfl / 2), (False, cfl)):
        places = [place for place, is_unstable in enumerate(unstable) if is_unstable == are_unstable]
        if places:
            fields[:, places] = _integrate(initial[:, places], config, [names[place] for place in places], smaller)
    return fields


def _initial_states(config: SimulationConfig, indices: range) -> Tensor:
    states = [
        random_initial_state(
            i, resolution=config.resolution, mach=config.mach, seed=config.seed, windowed_share=config.windowed_share
        )
        for i in indices
    ]
    return torch.stack(states, dim=1)


def frame_times(frames: int, duration: float = 1.0) -> list[float]:
    """Return equally spaced times from 0 to `duration`.

    Example:
        >>> frame_times(3), frame_times(3, 0.5)
        ([0.0, 0.5, 1.0], [0.0, 0.25, 0.5])
    """
    return [duration * (frame / (frames - 1)) for frame in range(frames)]
