r"""Finite-volume solver of the 2D compressible Navier-Stokes equations on the periodic unit square.

States are tensors of shape (4, B, X, Y): four fields, B trajectories, X by Y cells. All trajectories advance at once,
each with its own time step, so that a hot gas (fast sound) does not slow the cold ones' accuracy, and the result of a
trajectory does not depend on its neighbours in the batch.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import pad

GAMMA = 5.0 / 3.0

Limiter = Literal["van_leer", "none"]


def to_primitive(conserved: Tensor) -> Tensor:
    r"""Turn conserved fields into primitive ones.

    $$p = (\gamma - 1) (E - \rho |v|^2 / 2)$$

    Args:
        conserved: (4, ...): density, x-momentum, y-momentum, total energy per volume.

    Returns:
        (4, ...): density, x-velocity, y-velocity, pressure.

    Example:
        >>> to_primitive(torch.tensor([2.0, 4.0, 0.0, 7.0]))
        tensor([2., 2., 0., 2.])

    Reference:
        Toro, Riemann Solvers and Numerical Methods for Fluid Dynamics, chapter 3.
    """
    density, momentum_x, momentum_y, energy = conserved
    vx, vy = momentum_x / density, momentum_y / density
    pressure = (GAMMA - 1) * (energy - 0.5 * (momentum_x * vx + momentum_y * vy))
    return torch.stack((density, vx, vy, pressure))


def to_conserved(primitive: Tensor) -> Tensor:
    r"""Turn primitive fields into conserved ones, the inverse of `to_primitive`.

    $$E = p / (\gamma - 1) + \rho |v|^2 / 2$$

    Args:
        primitive: (4, ...): density, x-velocity, y-velocity, pressure.

    Returns:
        (4, ...): density, x-momentum, y-momentum, total energy per volume.

    Example:
        >>> to_conserved(torch.tensor([2.0, 2.0, 0.0, 2.0]))
        tensor([2., 4., 0., 7.])
    """
    density, vx, vy, pressure = primitive
    energy = pressure / (GAMMA - 1) + 0.5 * density * (vx.square() + vy.square())
    return torch.stack((density, density * vx, density * vy, energy))


def integrate(
    initial: Tensor,
    times: Sequence[float],
    *,
    eta: float = 0.0,
    zeta: float = 0.0,
    cfl: float = 0.8,
    limiter: Limiter = "van_leer",
    names: Sequence[int] | None = None,
    on_frame: Callable[[], None] | None = None,
) -> Tensor:
    r"""Advance the compressible Navier-Stokes equations and return the fields at the given times.

    $$\partial_t U + \nabla \cdot F(U) = \nabla \cdot (0, \tau, \tau v), \quad
    \tau = \rho \eta (\nabla v + \nabla v^T - \tfrac{2}{3} \nabla \cdot v) + \rho \zeta \nabla \cdot v$$

    Second order in space (linear reconstruction of the primitive fields, HLLC fluxes, central viscous fluxes in
    conservative form) and in time (two-stage strong-stability-preserving Runge-Kutta). Ideal gas, gamma 5/3, no heat
    conduction.

    Args:
        initial: (4, B, X, Y), density, x-velocity, y-velocity, pressure at the first time; cell means or, to second
            order the same, values at cell centres ((i + 1/2)/X, (j + 1/2)/Y).
        times: increasing; the first is the initial state's, each is met exactly.
        eta: kinematic shear viscosity, at least 0.
        zeta: kinematic bulk viscosity, at least 0.
        cfl: share of the largest stable time step, in (0, 1].
        limiter: "van_leer", or "none" for smooth flow.
        names: what error messages call the B trajectories; their positions when left out.
        on_frame: called after each frame, for a progress display.

    Returns:
        (4, B, T, X, Y), primitive fields, the initial state first.

    Raises:
        ValueError: for arguments out of range.
        RuntimeError: if a trajectory's density or pressure leaves the positive numbers.

    Example:
        >>> at_rest = torch.ones(4, 1, 8, 8) * torch.tensor([1.0, 0.0, 0.0, 1.0]).reshape(4, 1, 1, 1)
        >>> frames = integrate(at_rest, [0.0, 0.1])
        >>> frames.shape, torch.equal(frames[:, :, 1], at_rest)
        (torch.Size([4, 1, 2, 8, 8]), True)

    Reference:
        Toro, Riemann Solvers and Numerical Methods for Fluid Dynamics, sections 10.4 (HLLC) and 13.4 (linear
        reconstruction); Landau and Lifshitz, Fluid Mechanics, equations 15.3 and 49.2; Gottlieb, Shu, Tadmor (2001),
        section 4.1.
    """
    _check_flow(initial, times)
    _check_settings(eta, zeta, cfl, limiter)
    scheme = _Scheme(1.0 / initial.shape[2], 1.0 / initial.shape[3], eta, zeta, cfl, limiter)
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


def _check_settings(eta: float, zeta: float, cfl: float, limiter: str) -> None:
    for name, value in (("eta", eta), ("zeta", zeta)):
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"Expected argument `{name}` to be a finite number of at least 0, but got {value}.")
    if not 0 < cfl <= 1:
        raise ValueError(f"Expected argument `cfl` to be in (0, 1], but got {cfl}.")
    if limiter not in ("van_leer", "none"):
        raise ValueError(f"Expected argument `limiter` to be 'van_leer' or 'none', but got {limiter!r}.")


class _Scheme:
    """The spatial operator and time step for one grid and one gas."""

    def __init__(self, dx: float, dy: float, eta: float, zeta: float, cfl: float, limiter: Limiter) -> None:
        self.spacing = (dx, dy)
        self.eta, self.zeta, self.cfl = eta, zeta, cfl
        self.slope = _van_leer_slope if limiter == "van_leer" else _central_slope

    def advance(self, conserved: Tensor, duration: float, names: Sequence[int]) -> Tensor:
        """Advance every trajectory by the same duration, each in equal steps of its own near the stable size."""
        remaining = conserved.new_full((conserved.shape[1],), duration, dtype=torch.float64)
        active = torch.arange(conserved.shape[1], device=conserved.device)
        while len(active) > 0:
            current, left = conserved[:, active], remaining[active]
            primitive = to_primitive(current)
            step = self._stable_step(primitive, [names[i] for i in active.tolist()]).double()
            step = left / torch.ceil(left / step).clamp(min=1)
            dt = step.to(conserved.dtype).reshape(1, -1, 1, 1)
            predicted = current + dt * self._rate(primitive)
            current = 0.5 * (current + predicted + dt * self._rate(to_primitive(predicted)))
            conserved = conserved.index_copy(1, active, current)
            remaining = remaining.index_copy(0, active, torch.where(left > step * (1 + 1e-9), left - step, 0))
            active = torch.nonzero(remaining).flatten()
        self._stable_step(to_primitive(conserved), names)
        return conserved

    def _stable_step(self, primitive: Tensor, names: Sequence[int]) -> Tensor:
        density, vx, vy, pressure = primitive
        (dx, dy), viscosity = self.spacing, 4 / 3 * self.eta + self.zeta
        sound = torch.sqrt(GAMMA * pressure / density)
        rate = ((vx.abs() + sound) / dx + (vy.abs() + sound) / dy).amax((1, 2))
        good = torch.isfinite(rate) & (density.amin((1, 2)) > 0)
        if not bool(good.all()):
            bad = [names[i] for i in torch.nonzero(~good).flatten().tolist()]
            raise RuntimeError(
                f"Expected density and pressure to stay positive and finite, but they did not in trajectory {bad}. "
                "Lower `cfl` or `mach`, or raise `eta`, `zeta` or `resolution`."
            )
        diffusion = 2 * viscosity * (1 / dx**2 + 1 / dy**2)
        return torch.reciprocal(rate + diffusion) * self.cfl

    def _rate(self, primitive: Tensor) -> Tensor:
        flux_x, flux_y = self._flux(primitive, 0), self._flux(primitive, 1)
        return -torch.diff(flux_x, dim=2) / self.spacing[0] - torch.diff(flux_y, dim=3) / self.spacing[1]

    def _flux(self, primitive: Tensor, axis: int) -> Tensor:
        """Flux through all faces across one axis; both end faces are the same periodic face, computed from equal data.

        The work is done with the axis across the faces in place of x: dimensions and velocities change places for y.
        """
        if axis == 1:
            primitive = primitive[[0, 2, 1, 3]].transpose(2, 3)
        padded = pad(primitive, (0, 0, 2, 2), mode="circular")
        flux = _hllc_flux(*_reconstruct(padded, self.slope))
        if self.eta > 0 or self.zeta > 0:
            spacing = self.spacing if axis == 0 else self.spacing[::-1]
            flux = flux - _viscous_flux(padded[:, :, 1:-1], spacing, self.eta, self.zeta)
        return flux if axis == 0 else flux.transpose(2, 3)[[0, 2, 1, 3]]


def _central_slope(left: Tensor, right: Tensor) -> Tensor:
    return 0.5 * (left + right)


def _van_leer_slope(left: Tensor, right: Tensor) -> Tensor:
    """Harmonic mean of the one-sided differences, zero at extrema: 2ab/(a+b) where ab > 0."""
    product = (left * right).clamp(min=0)
    total = left + right
    return 2 * product / torch.where(product > 0, total, 1)


def _reconstruct(padded: Tensor, slope: Callable[[Tensor, Tensor], Tensor]) -> tuple[Tensor, Tensor]:
    """Primitive values on both sides of the n + 1 faces, from cells padded by two."""
    jump = torch.diff(padded, dim=2)
    half = 0.5 * slope(jump[:, :, :-1], jump[:, :, 1:])
    return padded[:, :, 1:-2] + half[:, :, :-1], padded[:, :, 2:-1] - half[:, :, 1:]


def _hllc_flux(left: Tensor, right: Tensor) -> Tensor:
    """HLLC flux along x; wave speeds bound those of both sides and of the Roe average (Toro, section 10.5)."""
    density_l, speed_l, _, pressure_l = left
    density_r, speed_r, _, pressure_r = right
    slowest, fastest = _wave_speeds(left, right)
    mass_l, mass_r = density_l * (slowest - speed_l), density_r * (fastest - speed_r)
    contact = (pressure_r - pressure_l + mass_l * speed_l - mass_r * speed_r) / (mass_l - mass_r)
    upwind = contact >= 0
    density, speed, tangential, pressure = torch.where(upwind, left, right)
    wave = torch.where(upwind, slowest, fastest)
    crossing = torch.where(upwind, slowest.clamp(max=0), fastest.clamp(min=0))
    mass = density * (wave - speed)
    star_density = mass / (wave - contact)
    energy = pressure / (GAMMA - 1) + 0.5 * density * (speed.square() + tangential.square())
    star_energy = star_density * (energy / density + (contact - speed) * (contact + pressure / mass))
    through = density * speed
    return torch.stack(
        (
            through + crossing * (star_density - density),
            through * speed + pressure + crossing * (star_density * contact - through),
            tangential * (through + crossing * (star_density - density)),
            (energy + pressure) * speed + crossing * (star_energy - energy),
        )
    )


def _wave_speeds(left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
    sound_l = torch.sqrt(GAMMA * left[3] / left[0])
    sound_r = torch.sqrt(GAMMA * right[3] / right[0])
    weight_l, weight_r = left[0].sqrt(), right[0].sqrt()
    total = weight_l + weight_r
    speed = (weight_l * left[1] + weight_r * right[1]) / total
    jump = (right[1] - left[1]).square()
    sound = torch.sqrt(
        (weight_l * sound_l.square() + weight_r * sound_r.square()) / total
        + 0.5 * weight_l * weight_r / total.square() * jump
    )
    return torch.minimum(left[1] - sound_l, speed - sound), torch.maximum(right[1] + sound_r, speed + sound)


def _viscous_flux(padded: Tensor, spacing: tuple[float, float], eta: float, zeta: float) -> Tensor:
    """Stress and its work through the faces across x, from cells padded by one along x."""
    density, velocity = padded[0], padded[1:3]
    across = torch.diff(velocity, dim=2) / spacing[0]
    wrapped = pad(velocity, (1, 1, 0, 0), mode="circular")
    central = (wrapped[..., 2:] - wrapped[..., :-2]) / (2 * spacing[1])
    along = 0.5 * (central[:, :, 1:] + central[:, :, :-1])
    at_face = 0.5 * (velocity[:, :, 1:] + velocity[:, :, :-1])
    density = 0.5 * (density[:, 1:] + density[:, :-1])
    divergence = across[0] + along[1]
    normal = density * (eta * 2 * across[0] + (zeta - 2 / 3 * eta) * divergence)
    shear = density * eta * (across[1] + along[0])
    return torch.stack((torch.zeros_like(shear), normal, shear, normal * at_face[0] + shear * at_face[1]))
