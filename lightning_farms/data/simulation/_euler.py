"""One explicit step of the inviscid flow (Euler equations) on a periodic grid, second order in space and time."""

from typing import Literal

import torch
from torch import Tensor

GAMMA = 5.0 / 3.0

Limiter = Literal["van_leer", "none"]

_LEAST_SHARE = 0.1  # of a cell's density and pressure: values extrapolated to its faces stay above it


def to_primitive(conserved: Tensor) -> Tensor:
    r"""Convert (density, x-momentum, y-momentum, energy per volume) to (density, x-velocity, y-velocity, pressure).

    $$p = (\gamma - 1) (E - \rho |v|^2 / 2)$$

    The four fields are stacked along the first axis.

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
    r"""Convert primitive to conserved fields, the inverse of `to_primitive`.

    $$E = p / (\gamma - 1) + \rho |v|^2 / 2$$

    Example:
        >>> to_conserved(torch.tensor([2.0, 2.0, 0.0, 2.0]))
        tensor([2., 4., 0., 7.])
    """
    density, vx, vy, pressure = primitive
    energy = pressure / (GAMMA - 1) + 0.5 * density * (vx.square() + vy.square())
    return torch.stack((density, density * vx, density * vy, energy))


def euler_step(conserved: Tensor, dt: Tensor, spacing: tuple[float, float], limiter: Limiter) -> Tensor:
    """Advance (4, B, X, Y) conserved fields by one MUSCL-Hancock step with HLLC fluxes and time steps `dt` (B,).

    Each cell's primitive fields get slopes along x and y, are advanced by half a step with them, and are extrapolated
    to the faces, where HLLC resolves the jumps. The step is stable while dt times the largest
    (|vx| + sound) / dx + (|vy| + sound) / dy stays below 1.

    Reference:
        Toro, Riemann Solvers and Numerical Methods for Fluid Dynamics, sections 10.4, 14.4 and 16.5.
    """
    primitive = to_primitive(conserved)
    steps = dt.reshape(-1, 1, 1)
    slopes = [_slope(primitive, dim, limiter) for dim in (2, 3)]
    middle = primitive + 0.5 * steps * _change(primitive, slopes[0] / spacing[0], slopes[1] / spacing[1])
    none = torch.full_like(primitive[0], -torch.inf)
    floor = torch.stack((_LEAST_SHARE * primitive[0], none, none, _LEAST_SHARE * primitive[3]))
    after = conserved
    for axis in (0, 1):
        dim, half = axis + 2, 0.5 * slopes[axis]
        left = torch.maximum(middle + half, floor)
        right = torch.maximum(middle - half, floor).roll(-1, dim)
        flux = _hllc_flux(left, right, axis)
        after = after - steps / spacing[axis] * (flux - flux.roll(1, dim))
    return after


def _slope(primitive: Tensor, dim: int, limiter: Limiter) -> Tensor:
    """Return the change over a cell; van Leer's is the harmonic mean 2ab/(a+b) of both differences, 0 at extrema."""
    after = primitive.roll(-1, dim) - primitive
    before = after.roll(1, dim)
    if limiter == "none":
        return 0.5 * (before + after)
    product = before * after
    return torch.where(product > 0, 2 * product / (before + after), 0.0)


def _change(primitive: Tensor, along_x: Tensor, along_y: Tensor) -> Tensor:
    """Return the time derivative of the primitive fields for given space derivatives (Toro, equation 3.9)."""
    density, vx, vy, pressure = primitive
    expansion = along_x[1] + along_y[2]
    change: Tensor = -(vx * along_x + vy * along_y)
    change[0] -= density * expansion
    change[1] -= along_x[3] / density
    change[2] -= along_y[3] / density
    change[3] -= GAMMA * pressure * expansion
    return change


def _hllc_flux(left: Tensor, right: Tensor, axis: int) -> Tensor:
    """Return the HLLC flux; wave speeds bound those of both sides and of the Roe average (Toro, section 10.5)."""
    density_l, speed_l, pressure_l = left[0], left[1 + axis], left[3]
    density_r, speed_r, pressure_r = right[0], right[1 + axis], right[3]
    slowest, fastest = _wave_speeds(density_l, speed_l, pressure_l, density_r, speed_r, pressure_r)
    mass_l, mass_r = density_l * (slowest - speed_l), density_r * (fastest - speed_r)
    contact = (pressure_r - pressure_l + mass_l * speed_l - mass_r * speed_r) / (mass_l - mass_r)
    upwind = contact >= 0
    state = torch.where(upwind, left, right)
    density, speed, tangential, pressure = state[0], state[1 + axis], state[2 - axis], state[3]
    wave = torch.where(upwind, slowest, fastest)
    crossing = torch.where(upwind, slowest.clamp(max=0), fastest.clamp(min=0))
    mass = density * (wave - speed)
    star_density = mass / (wave - contact)
    energy = pressure / (GAMMA - 1) + 0.5 * density * (speed.square() + tangential.square())
    star_energy = star_density * (energy / density + (contact - speed) * (contact + pressure / mass))
    through = density * speed
    mass_flux = through + crossing * (star_density - density)
    normal_flux = through * speed + pressure + crossing * (star_density * contact - through)
    momentum = (normal_flux, tangential * mass_flux)
    energy_flux = (energy + pressure) * speed + crossing * (star_energy - energy)
    return torch.stack((mass_flux, momentum[axis], momentum[1 - axis], energy_flux))


def _wave_speeds(
    density_l: Tensor, speed_l: Tensor, pressure_l: Tensor, density_r: Tensor, speed_r: Tensor, pressure_r: Tensor
) -> tuple[Tensor, Tensor]:
    square_l, square_r = GAMMA * pressure_l / density_l, GAMMA * pressure_r / density_r
    weight = torch.reciprocal(1 + torch.sqrt(density_r / density_l))
    jump = speed_r - speed_l
    speed = speed_r - weight * jump
    mixed = weight * (1 - weight) * jump.square()
    sound = torch.sqrt(square_r + weight * (square_l - square_r) + 0.5 * mixed)
    slowest = torch.minimum(speed_l - torch.sqrt(square_l), speed - sound)
    return slowest, torch.maximum(speed_r + torch.sqrt(square_r), speed + sound)
