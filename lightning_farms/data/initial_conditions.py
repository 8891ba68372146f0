"""Random initial states of the compressible flow: a few smooth Fourier modes on a uniform gas."""

import math

import numpy as np
import torch
from torch import Tensor

from lightning_farms.data.solver import GAMMA

_LARGEST_WAVE_NUMBER = 4
_LARGEST_DIP = 0.9


def random_initial_state(index: int, *, resolution: int, mach: float, seed: int) -> Tensor:
    r"""Draw the initial state of one trajectory.

    $$\rho = \rho_0 (1 + a f_1 / \overline{|f_1|}), \quad p = \rho_0 T_0 (1 + b f_2 / \overline{|f_2|}), \quad
    v = (f_3, f_4) M \sqrt{\gamma T_0} / \overline{|(f_3, f_4)|}$$

    with density and temperature $\rho_0, T_0 \sim U[0.1, 10]$, relative perturbations $a, b \sim U[0.01, 0.2]$ and
    $f = \sum_k |k|^{-1/2} \cos(2 \pi k \cdot x + \phi_k)$ over all waves with $1 \le |k_x|, |k_y| \le 4$,
    the wave content that PDEBench's files show. Where a draw would take density or pressure below a tenth of its mean,
    its perturbation is made smaller to stop there.

    Args:
        index: number of the trajectory in its set, at least 0.
        resolution: cells along each side, at least 8.
        mach: mean speed in units of the mean gas's speed of sound, at least 0.
        seed: of the set, at least 0. The draw depends on (seed, index) alone, and is made on the CPU.

    Returns:
        (4, X, Y) in float64: density, x-velocity, y-velocity, pressure at the cell centres.

    Example:
        >>> state = random_initial_state(0, resolution=16, mach=0.1, seed=0)
        >>> state.shape, bool((state[[0, 3]] > 0).all())
        (torch.Size([4, 16, 16]), True)

    Reference:
        Takamoto et al., PDEBench (2022), arXiv 2210.07182, the appendix's description of the 2D random fields; wave
        content and normalisation as measured on its files' first frames.
    """
    entropy = int(np.random.SeedSequence((seed, index)).generate_state(1, np.uint64)[0] >> 1)
    generator = torch.Generator().manual_seed(entropy)
    uniform = torch.rand(4, generator=generator, dtype=torch.float64)
    density, temperature = (0.1 + 9.9 * uniform[:2]).tolist()
    perturbation = 0.01 + 0.19 * uniform[2:]
    fields = _random_fields(4, resolution, generator)
    shape = fields[:2] / fields[:2].abs().mean((1, 2), keepdim=True)
    relative = shape * torch.minimum(perturbation, _LARGEST_DIP / -shape.amin((1, 2))).reshape(2, 1, 1)
    velocity = fields[2:] * (mach * math.sqrt(GAMMA * temperature) / fields[2:].square().sum(0).sqrt().mean())
    return torch.stack(
        (density * (1 + relative[0]), velocity[0], velocity[1], density * temperature * (1 + relative[1]))
    )


def _random_fields(count: int, resolution: int, generator: torch.Generator) -> Tensor:
    """Sums of plane waves with random phases, (count, X, Y)."""
    components = [k for k in range(-_LARGEST_WAVE_NUMBER, _LARGEST_WAVE_NUMBER + 1) if k != 0]
    waves = torch.cartesian_prod(*2 * [torch.tensor(components, dtype=torch.float64)])
    phases = 2 * math.pi * torch.rand(count, len(waves), generator=generator, dtype=torch.float64)
    centres = 2 * math.pi * (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    along_x, along_y = waves[:, :1] * centres, waves[:, 1:] * centres
    turns = along_x.unsqueeze(2) + along_y.unsqueeze(1)
    amplitudes = waves.square().sum(1).pow(-0.25)
    weights = torch.stack((amplitudes * phases.cos(), -amplitudes * phases.sin()))
    return torch.einsum("ck,kxy->cxy", weights[0], turns.cos()) + torch.einsum("ck,kxy->cxy", weights[1], turns.sin())
