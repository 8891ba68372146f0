r"""Finite-volume solver of the 2D compressible Navier-Stokes equations on the periodic unit square.

States are tensors of shape (4, B, X, Y): four fields, B trajectories, X by Y cells. All trajectories advance at once,
each with its own time step, so that a hot gas (fast sound) does not impair the accuracy of cold ones, and the result of
a trajectory does not depend on its neighbours in the batch.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import get_args

import torch
from torch import Tensor

from lightning_farms.common.arguments import check_not_negative
from lightning_farms.data.simulation._euler import GAMMA, Limiter, euler_step, to_conserved, to_primitive
from lightning_farms.data.simulation._viscosity import (
    STRESSES,
    Friction,
    Stress,
    stable_ratio,
    stages_for,
    viscous_step,
)

_LEAST_STEP = 1e-6  # share of the time left: below it, float32 could not count down
_NOMINAL_SPEED = 1.0  # slowest sound that the friction's stages are planned for; slower gases take shorter steps


def integrate(
    initial: Tensor,
    times: Sequence[float],
    *,
    eta: float = 0.0,
    zeta: float = 0.0,
    cfl: float = 0.8,
    stress: Stress = "full",
    limiter: Limiter = "van_leer",
    names: Sequence[int] | None = None,
    on_frame: Callable[[], None] | None = None,
) -> Tensor:
    r"""Advance the compressible Navier-Stokes equations and return the fields at the given times.

    $$\partial_t U + \nabla \cdot F(U) = \nabla \cdot (0, \tau, \tau v), \quad
    \tau = \rho \eta (\nabla v + \nabla v^T - \tfrac{2}{3} \nabla \cdot v) + \rho \zeta \nabla \cdot v$$

    The scheme is of second order in space and time: MUSCL-Hancock steps with HLLC fluxes, and between each two of them
    a friction step by a stabilised Runge-Kutta method, as long as both together, so that a viscous gas costs little
    more than a thin one. Both are in conservative form. The gas is ideal, with gamma 5/3 and no heat conduction.

    Args:
        initial: (4, B, X, Y), density, x-velocity, y-velocity, pressure at the first time; cell means or, to second
            order the same, values at cell centres ((i + 1/2)/X, (j + 1/2)/Y).
        times: increasing; the first is that of the initial state, and each is met exactly.
        eta: kinematic shear viscosity, at least 0.
        zeta: kinematic bulk viscosity, at least 0.
        cfl: share of the largest stable time step, in (0, 1].
        stress: "full", or "unmixed" for what PDEBench's files show: without the terms that mix directions, see
            `SimulationConfig`.
        limiter: "van_leer", or "none" for smooth flow.
        names: what error messages call the B trajectories; their positions when left out.
        on_frame: called after each frame, for a progress display.

    Returns:
        (4, B, T, X, Y), primitive fields, the initial state first.

    Raises:
        ValueError: for arguments out of range.
        UnstableFlowError: if a trajectory's density or pressure leaves the positive numbers.

    Example:
        >>> at_rest = torch.ones(4, 1, 8, 8) * torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(4, 1, 1, 1)
        >>> frames = integrate(at_rest, [0.0, 0.1])
        >>> frames.shape, torch.equal(frames[:, :, 1], at_rest)
        (torch.Size([4, 1, 2, 8, 8]), True)

    Reference:
        Landau and Lifshitz, Fluid Mechanics, equations 15.3 and 49.2; the schemes' in `euler_step` and `viscous_step`.
    """
    _check_flow(initial, times)
    _check_settings(eta, zeta, cfl)
    _check_choices(stress, limiter)
    scheme = _Scheme(Friction(eta, zeta, stress, (1.0 / initial.shape[2], 1.0 / initial.shape[3])), cfl, limiter)
    conserved = to_conserved(initial)
    frames = [initial]
    for start, end in itertools.pairwise(times):
        conserved = scheme.advance(conserved, end - start, range(initial.shape[1]) if names is None else names)
        frames.append(to_primitive(conserved))
        if on_frame is not None:
            on_frame()
    return torch.stack(frames, dim=2)


def _check_flow(initial: Tensor, times: Sequence[float]) -> None:
    if initial.ndim != 4 or initial.shape[0] != 4 or min(initial.shape[2:]) < 4:
        raise ValueError(
            "Expected argument `initial` to be of shape (4, B, X, Y) with X and Y at least 4, "
            f"but got {tuple(initial.shape)}."
        )
    if len(times) < 1 or any(end <= start for start, end in itertools.pairwise(times)):
        raise ValueError(f"Expected argument `times` to be increasing and not empty, but got {list(times)}.")


def _check_settings(eta: float, zeta: float, cfl: float) -> None:
    check_not_negative(eta=eta, zeta=zeta)
    if not 0 < cfl <= 1:
        raise ValueError(f"Expected argument `cfl` to be in (0, 1], but got {cfl}.")


def _check_choices(stress: str, limiter: str) -> None:
    if stress not in STRESSES:
        raise ValueError(f"Expected argument `stress` to be 'unmixed' or 'full', but got {stress!r}.")
    if limiter not in get_args(Limiter):
        raise ValueError(f"Expected argument `limiter` to be 'van_leer' or 'none', but got {limiter!r}.")


class UnstableFlowError(RuntimeError):
    """Density or pressure left the positive numbers.

    Args:
        trajectories: names of the trajectories in which they did.
    """

    def __init__(self, trajectories: Sequence[int]) -> None:
        self.trajectories = tuple(trajectories)
        super().__init__(
            "Expected density and pressure to stay positive and finite, and time steps above a millionth of "
            f"a frame, but they did not in trajectory {list(trajectories)}. "
            "Raise `resolution` or lower `mach`; raise `eta` and `zeta` if they are small for the grid, lower them "
            "if they are large. `integrate` also takes a smaller `cfl`."
        )


class _Scheme:
    """Time stepping for one grid and one gas."""

    def __init__(self, friction: Friction, cfl: float, limiter: Limiter) -> None:
        self.friction, self.cfl, self.limiter = friction, cfl, limiter
        self.is_viscous = friction.longitudinal > 0
        speed = 2 * _NOMINAL_SPEED * sum(1 / step for step in friction.spacing)
        limit = friction.euler_limit(torch.ones(1, 4, 4)).item() if self.is_viscous else math.inf
        self.stages = stages_for(2 * cfl / speed / limit)

    def advance(self, conserved: Tensor, duration: float, names: Sequence[int]) -> Tensor:
        """Advance every trajectory by the same duration, each in equal steps of its own near the stable size."""
        result = conserved.clone()
        rows = torch.arange(conserved.shape[1], device=conserved.device)
        left = conserved.new_full((len(rows),), duration)
        sane = torch.ones_like(rows, dtype=torch.bool)
        unchecked = _unchecked_steps(conserved.device)
        while len(rows) > 0:
            for _ in range(unchecked):
                conserved, left, good = self._step(conserved, left)
                sane = sane.index_put((rows,), sane[rows] & good)
            done = left == 0
            if bool(done.any()):
                result = result.index_copy(1, rows[done], conserved[:, done])
                rows, conserved, left = rows[~done], conserved[:, ~done], left[~done]
        self._check(sane & self._rate(result)[1], names)
        return result

    def _step(self, conserved: Tensor, left: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Take two inviscid steps around a friction step twice as long, second order in time (Strang).

        A trajectory that has no time left, or is no longer a flow, is not advanced further.
        """
        rate, good = self._rate(conserved)
        step = 2 * self.cfl / rate
        if self.is_viscous:
            step = torch.minimum(step, stable_ratio(self.stages) * self.friction.euler_limit(conserved[0]))
        good = good & (step >= _LEAST_STEP * left)
        step = torch.where(good, left / torch.ceil(left / step).clamp(min=1), 0)
        after = euler_step(conserved, step / 2, self.friction.spacing, self.limiter)
        if self.is_viscous:
            after = viscous_step(after, step, self.friction, self.stages)
        after = euler_step(after, step / 2, self.friction.spacing, self.limiter)
        after = torch.where((step > 0).reshape(1, -1, 1, 1), after, conserved)
        return after, torch.where(good & (left > step * (1 + 1e-6)), left - step, 0), good

    def _rate(self, conserved: Tensor) -> tuple[Tensor, Tensor]:
        """Return how many cells the fastest signal crosses per unit of time, and whether the state is one of a gas."""
        density, vx, vy, pressure = to_primitive(conserved)
        dx, dy = self.friction.spacing
        sound = torch.sqrt(GAMMA * pressure / density)
        rate = ((vx.abs() + sound) / dx + (vy.abs() + sound) / dy).amax((1, 2))
        return rate, torch.isfinite(rate) & (density.amin((1, 2)) > 0)

    @staticmethod
    def _check(good: Tensor, names: Sequence[int]) -> None:
        bad = [name for name, is_good in zip(names, good.tolist(), strict=True) if not is_good]
        if bad:
            raise UnstableFlowError(bad)


def _unchecked_steps(device: torch.device) -> int:
    """Return the steps between checks of which trajectories are done: each check makes the host wait for the device."""
    return 1 if device.type == "cpu" else 8
