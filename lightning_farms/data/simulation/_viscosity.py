r"""Internal friction of a gas on a periodic grid: its effect on velocity and energy, in one long stable step."""

import math
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

Stress = Literal["unmixed", "full"]

STRESSES: tuple[Stress, ...] = get_args(Stress)

_SAFETY = 0.9


class Friction(NamedTuple):
    """Friction of one gas on one grid.

    Args:
        eta: kinematic shear viscosity, at least 0.
        zeta: kinematic bulk viscosity, at least 0.
        stress: "full" for the Newtonian stress, "unmixed" for the part that PDEBench's files show.
        spacing: cell sizes along x and y.
    """

    eta: float
    zeta: float
    stress: Stress
    spacing: tuple[float, float]

    @property
    def longitudinal(self) -> float:
        """Diffusivity of a compressive wave."""
        return 4 / 3 * self.eta + self.zeta

    def euler_limit(self, density: Tensor) -> Tensor:
        """Return the largest stable step of the forward Euler method, (B,), for densities of shape (B, X, Y)."""
        neighbours = torch.stack([density.roll(shift, dim) for shift in (-1, 1) for dim in (1, 2)])
        contrast = 0.5 * (1 + (neighbours / density).amax((0, 2, 3)))
        least, most = min(self.spacing), max(self.spacing)
        rate = 2 * (self.longitudinal / least**2 + self.eta / most**2)  # of the chessboard mode, for either stress
        return _SAFETY / (rate * contrast)


def stages_for(ratio: float) -> int:
    r"""Return the stages with which `viscous_step` is stable at a multiple of the forward Euler method's limit.

    $$(s^2 + s - 2) / 4 \ge r$$

    Example:
        >>> [stages_for(ratio) for ratio in (0.5, 1.1, 27.0)]
        [2, 3, 10]
    """
    return max(2, math.ceil(0.5 * (math.sqrt(9 + 16 * ratio) - 1)))


def stable_ratio(stages: int) -> float:
    """Return the largest stable multiple of the forward Euler method's limit, see `stages_for`.

    Example:
        >>> stable_ratio(3)
        2.5
    """
    return (stages**2 + stages - 2) / 4


def viscous_step(conserved: Tensor, duration: Tensor, friction: Friction, stages: int) -> Tensor:
    r"""Advance momentum and energy under friction alone, second order in time.

    $$\rho \partial_t v = \nabla \cdot \tau, \quad \partial_t E = \nabla \cdot (\tau v)$$

    with the Newtonian stress $\tau = \rho \eta (\nabla v + \nabla v^T - \tfrac{2}{3} \nabla \cdot v) +
    \rho \zeta \nabla \cdot v$, or, if "unmixed", only its terms that differentiate a velocity component along its own
    axis (diagonal) or across it (off the diagonal): $\tau_{xx} = \rho (\tfrac{4}{3} \eta + \zeta) \partial_x v_x$, and
    $\rho \eta \partial_x v_y$ through the faces across x.

    The method is Runge-Kutta-Legendre of second order: s stages are stable for $(s^2 + s - 2) / 4$ of Euler's steps.

    Args:
        conserved: (4, B, X, Y).
        duration: (B,), the step of each trajectory, at most `stable_ratio(stages)` times `friction.euler_limit`.
        friction: the gas and the grid.
        stages: s, at least 2.

    Returns:
        (4, B, X, Y), conserved fields after the step.

    Reference:
        Landau and Lifshitz, Fluid Mechanics, equations 15.3 and 49.2; Meyer, Balsara, Aslam (2014), A stabilized
        Runge-Kutta-Legendre method for explicit super-time-stepping of parabolic and mixed equations, section 3.
    """
    density = conserved[0]
    faces = [_at_faces(density, dim) for dim in (1, 2)]
    weights = [0.0, *((j * j + j - 2) / (2 * j * (j + 1)) for j in range(1, stages + 1))]
    weights[:3] = [1 / 3] * 3
    tau = duration.reshape(-1, 1, 1) * (4 / (stages**2 + stages - 2))
    start = torch.cat((conserved[1:3] / density, conserved[3:]))
    first = tau * _rate(start, density, faces, friction)
    before, current = start, start + weights[1] * first
    for j in range(2, stages + 1):
        mu = (2 * j - 1) / j * weights[j] / weights[j - 1]
        nu = (1 - j) / j * weights[j] / weights[j - 2]
        change = tau * _rate(current, density, faces, friction) - (1 - weights[j - 1]) * first
        before, current = current, mu * (current + change) + nu * before + (1 - mu - nu) * start
    return torch.cat((conserved[:1], density * current[:2], current[2:]))


def _rate(state: Tensor, density: Tensor, faces: list[Tensor], friction: Friction) -> Tensor:
    """Return the time derivatives of (vx, vy, energy), shape (3, B, X, Y)."""
    velocity = state[:2]
    rate = torch.zeros_like(state)
    for axis in (0, 1):
        dim, step = axis + 2, friction.spacing[axis]
        after = velocity.roll(-1, dim)
        stress = _stress(velocity, (after - velocity) / step, faces[axis], axis, friction)
        work = (stress * (0.5 * (velocity + after))).sum(0, keepdim=True)
        flux = torch.cat((stress, work))
        rate += (flux - flux.roll(1, dim)) / step
    rate[:2] /= density
    return rate


def _stress(velocity: Tensor, across: Tensor, density: Tensor, axis: int, friction: Friction) -> Tensor:
    """Return the force in x and y through faces across an axis, (2, B, X, Y); `across`: the velocity's slope there."""
    eta, other = friction.eta, 1 - axis
    force = [eta * across[0], eta * across[1]]
    force[axis] = friction.longitudinal * across[axis]
    if friction.stress == "full":
        dim = other + 2
        central = (velocity.roll(-1, dim) - velocity.roll(1, dim)) / (2 * friction.spacing[other])
        along = 0.5 * (central + central.roll(-1, axis + 2))
        force[axis] = force[axis] + (friction.zeta - 2 / 3 * eta) * along[other]
        force[other] = force[other] + eta * along[axis]
    return density * torch.stack(force)


def _at_faces(density: Tensor, dim: int) -> Tensor:
    return 0.5 * (density + density.roll(-1, dim))
