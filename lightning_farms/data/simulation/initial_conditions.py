"""Random initial states of the compressible flow: a few smooth Fourier modes on a uniform gas."""

import math

import torch
from torch import Tensor

from lightning_farms.common.seeding import seeded_generator
from lightning_farms.data.simulation._euler import GAMMA

WINDOWED_SHARE = 0.625
"""Share of trajectories at rest outside a window in PDEBench's M0.1, eta = zeta = 0.01 set: 25 of 40."""

_LARGEST_WAVE_NUMBER = 4
_LARGEST_DIP = 0.9
_WINDOW_SIDE, _WINDOW_EDGE = 0.45, 0.01
_WINDOW_STARTS = ((0.1, 0.275), (0.1, 0.45))  # lowest and highest lower edge, along x and y


def random_initial_state(
    index: int, *, resolution: int, mach: float, seed: int, windowed_share: float = WINDOWED_SHARE
) -> Tensor:
    r"""Draw the initial state of one trajectory.

    $$\rho = \rho_0 (1 + a W f_1 / \overline{|f_1|}), \quad p = \rho_0 T_0 (1 + b W f_2 / \overline{|f_2|}), \quad
    v = W (f_3, f_4) M \sqrt{\gamma T_0} / \overline{|(f_3, f_4)|}$$

    with density and temperature $\rho_0, T_0 \sim U[0.1, 10]$, relative perturbations $a, b \sim U[0.01, 0.2]$ and
    $f = \sum_k |k|^{-1/2} \cos(2 \pi k \cdot x + \phi_k)$ over all waves with $1 \le |k_x|, |k_y| \le 4$. If a draw
    would take density or pressure below a tenth of its mean, its perturbation is reduced so that it stops there.

    W is 1 in some trajectories. In the others it is a window, outside of which a uniform gas is at rest:
    $W = w(x - x_0) w(y - y_0)$, $w(s) = \tfrac{1}{4} (1 + \tanh(s / 0.01)) (1 + \tanh((0.45 - s) / 0.01))$, with
    $x_0 \sim U[0.1, 0.275]$, $y_0 \sim U[0.1, 0.45]$.

    All of this is measured on the first frames of files by PDEBench's own generator, 40 trajectories at 64x64, of which
    25 have a window. The waves, amplitudes, side and edge of the window, and that the velocity is scaled before the
    window is applied, are exact to the files' precision. The ranges are read off what was drawn: density 0.41 to 9.92,
    temperature 0.77 to 9.91, perturbations 0.012 to 0.196, x_0 0.108 to 0.269, y_0 0.113 to 0.441.

    Args:
        index: number of the trajectory in its set, at least 0.
        resolution: cells along each side, at least 8.
        mach: mean speed in units of the mean gas's speed of sound, at least 0.
        seed: seed of the set, at least 0. The draw depends on (seed, index) alone, and is made on the CPU.
        windowed_share: probability of a window, in [0, 1].

    Returns:
        (4, X, Y) in float64: density, x-velocity, y-velocity, pressure at the cell centres.

    Example:
        >>> state = random_initial_state(0, resolution=16, mach=0.1, seed=0)
        >>> state.shape, bool((state[[0, 3]] > 0).all())
        (torch.Size([4, 16, 16]), True)

    Reference:
        Takamoto et al., PDEBench (2022), arXiv 2210.07182, whose 2D compressible flows are measured here.
    """
    generator = seeded_generator((seed, index))
    uniform = torch.rand(4, generator=generator, dtype=torch.float64)
    density, temperature = (0.1 + 9.9 * uniform[:2]).tolist()
    perturbation = 0.01 + 0.19 * uniform[2:]
    fields = _random_fields(4, resolution, generator)
    shape = fields[:2] / fields[:2].abs().mean((1, 2), keepdim=True)
    relative = shape * torch.minimum(perturbation, _LARGEST_DIP / -shape.amin((1, 2))).reshape(2, 1, 1)
    velocity = fields[2:] * (mach * math.sqrt(GAMMA * temperature) / fields[2:].square().sum(0).sqrt().mean())
    chance, *place = torch.rand(3, generator=generator, dtype=torch.float64)
    changes = torch.cat((relative, velocity))
    if chance < windowed_share:
        changes = changes * _window(resolution, place)
    return torch.stack((density * (1 + changes[0]), changes[2], changes[3], density * temperature * (1 + changes[1])))


def _window(resolution: int, place: list[Tensor]) -> Tensor:
    """Return a window (X, Y): 1 in a square, 0 outside; `place` in [0, 1]^2 is relative to the possible positions."""
    sides = []
    for share, (lowest, highest) in zip(place, _WINDOW_STARTS, strict=True):
        inward = _centres(resolution) - (lowest + share * (highest - lowest))
        rise, fall = torch.tanh(inward / _WINDOW_EDGE), torch.tanh((_WINDOW_SIDE - inward) / _WINDOW_EDGE)
        sides.append(0.25 * (1 + rise) * (1 + fall))
    return torch.outer(*sides)


def _random_fields(count: int, resolution: int, generator: torch.Generator) -> Tensor:
    """Return sums of plane waves with random phases, (count, X, Y)."""
    components = [k for k in range(-_LARGEST_WAVE_NUMBER, _LARGEST_WAVE_NUMBER + 1) if k != 0]
    waves = torch.cartesian_prod(*2 * [torch.tensor(components, dtype=torch.float64)])
    phases = 2 * math.pi * torch.rand(count, len(waves), generator=generator, dtype=torch.float64)
    centres = 2 * math.pi * _centres(resolution)
    along_x, along_y = waves[:, :1] * centres, waves[:, 1:] * centres
    turns = along_x.unsqueeze(2) + along_y.unsqueeze(1)
    amplitudes = waves.square().sum(1).pow(-0.25)
    weights = torch.stack((amplitudes * phases.cos(), -amplitudes * phases.sin()))
    return torch.einsum("ck,kxy->cxy", weights[0], turns.cos()) + torch.einsum("ck,kxy->cxy", weights[1], turns.sin())


def _centres(resolution: int) -> Tensor:
    return (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
