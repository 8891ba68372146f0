"""A few figures that describe a set of flows, to compare one set with another."""

from typing import NamedTuple

import torch
from torch import Tensor

from lightning_farms.data.simulation._euler import GAMMA


class FlowStatistics(NamedTuple):
    """Figures of each trajectory at each frame, all of shape (B, T), in units that make trajectories comparable.

    Args:
        density_mean: mean density.
        pressure_mean: mean pressure.
        vx_mean: mean x-velocity, in units of the speed of sound of the first frame's mean gas.
        vy_mean: the same along y.
        density_std: standard deviation of density over space, divided by its mean.
        pressure_std: standard deviation of pressure over space, divided by its mean.
        vx_std: standard deviation of x-velocity over space, in units of that speed of sound.
        vy_std: the same along y.
        kinetic_energy: kinetic energy, divided by that of the first frame.
    """

    density_mean: Tensor
    pressure_mean: Tensor
    vx_mean: Tensor
    vy_mean: Tensor
    density_std: Tensor
    pressure_std: Tensor
    vx_std: Tensor
    vy_std: Tensor
    kinetic_energy: Tensor


def flow_statistics(density: Tensor, pressure: Tensor, vx: Tensor, vy: Tensor) -> FlowStatistics:
    r"""Summarise each trajectory's frames.

    $$c = \sqrt{\gamma \overline{p}_0 / \overline{\rho}_0}, \quad
    e_t = \overline{\rho |v|^2}_t / \overline{\rho |v|^2}_0$$

    Args:
        density: (B, T, X, Y), positive.
        pressure: (B, T, X, Y), positive.
        vx: velocity along x, (B, T, X, Y), not zero everywhere in a first frame.
        vy: velocity along y, (B, T, X, Y).

    Returns:
        The figures, in float64.

    Raises:
        ValueError: if the shapes differ or are not (B, T, X, Y).

    Example:
        >>> still, wave = torch.ones(1, 2, 4, 4), torch.tensor([1.0, -1.0, 1.0, -1.0]).expand(1, 2, 4, 4)
        >>> figures = flow_statistics(still, 0.6 * still, torch.tensor([1.0, 0.5]).reshape(1, 2, 1, 1) * wave, 0 * wave)
        >>> [round(value, 3) for value in figures.vx_std[0].tolist() + figures.kinetic_energy[0].tolist()]
        [1.0, 0.5, 1.0, 0.25]
    """
    shapes = [tuple(field.shape) for field in (density, pressure, vx, vy)]
    if len(set(shapes)) > 1 or len(shapes[0]) != 4:
        raise ValueError(f"Expected the fields to be of one shape (B, T, X, Y), but got {shapes}.")
    fields = torch.stack((density, pressure, vx, vy)).double()
    means, stds = fields.mean((3, 4)), fields.std((3, 4), correction=0)
    sound = torch.sqrt(GAMMA * means[1, :, :1] / means[0, :, :1])
    energy = (fields[0] * fields[2:].square().sum(0)).mean((2, 3))
    return FlowStatistics(
        density_mean=means[0],
        pressure_mean=means[1],
        vx_mean=means[2] / sound,
        vy_mean=means[3] / sound,
        density_std=stds[0] / means[0],
        pressure_std=stds[1] / means[1],
        vx_std=stds[2] / sound,
        vy_std=stds[3] / sound,
        kinetic_energy=energy / energy[:, :1],
    )
