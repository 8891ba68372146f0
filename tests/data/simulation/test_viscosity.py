import math

import pytest
import torch

from lightning_farms.data import integrate
from lightning_farms.data.simulation._viscosity import Friction, stable_ratio, stages_for, viscous_step

N, K = 32, 2 * math.pi
STEP = 1 / N


def grid():
    line = (torch.arange(N, dtype=torch.float64) + 0.5) / N
    return torch.meshgrid(line, line, indexing="ij")


def still(density=1.0):
    one = torch.ones(N, N, dtype=torch.float64)
    return torch.stack((density * one, 0 * one, 0 * one, 100 * one)).unsqueeze(1)


def rate_of(waves):
    """Eigenvalue of the second difference over a wave, and of the second central difference of twice the width."""
    return (2 - 2 * math.cos(K * waves * STEP)) / STEP**2


def decayed(moving, profile, *, stress="full", eta=0.0, zeta=0.0, time=0.01, steps=64):
    """The amplitude left of a velocity profile in a gas of density 2, by friction alone."""
    friction = Friction(eta, zeta, stress, (STEP, STEP))
    state = still(2.0)
    state[moving] = 2 * profile
    start = state
    for _ in range(steps):
        state = viscous_step(state, torch.tensor([time / steps], dtype=torch.float64), friction, 4)
    return ((state[moving, 0] * profile).sum() / (start[moving, 0] * profile).sum()).item()


@pytest.mark.parametrize("stress", ["full", "unmixed"])
@pytest.mark.parametrize(
    ("axis", "moving", "coefficient"), [(0, 2, "eta"), (1, 1, "eta"), (0, 1, "long"), (1, 2, "long")]
)
def test_a_plane_wave_decays_at_its_rate(stress, axis, moving, coefficient):
    """Shear waves by eta, compressive ones by 4/3 eta + zeta, for either stress, whatever the density."""
    eta, zeta, time = 0.03, 0.05, 0.1
    profile = torch.sin(K * 2 * grid()[axis])
    rate = eta if coefficient == "eta" else 4 / 3 * eta + zeta
    left = decayed(moving, profile, stress=stress, eta=eta, zeta=zeta, time=time)
    assert left == pytest.approx(math.exp(-rate * rate_of(2) * time), rel=1e-4)


@pytest.mark.parametrize("stages", [2, 3, 6, 11])
def test_second_order_in_time(stages):
    friction = Friction(0.05, 0.02, "full", (STEP, STEP))
    state = still()
    x, y = grid()
    state[1], state[2] = torch.sin(K * (x + y)), torch.cos(K * y) * torch.sin(2 * K * x)
    state[0] = 1 + 0.3 * torch.sin(K * x)
    longest = friction.euler_limit(state[0]) * stable_ratio(2)

    def after(parts):
        current = state
        for _ in range(parts):
            current = viscous_step(current, longest / parts, friction, stages)
        return current

    exact = after(64)
    errors = [(after(parts) - exact).abs().amax().item() for parts in (2, 4, 8)]
    assert errors[0] / errors[1] > 3.5
    assert errors[1] / errors[2] > 3.5


def test_jumps_of_density_shorten_the_longest_step():
    friction = Friction(0.01, 0.01, "full", (STEP, STEP))
    even, jump = still()[0], still()[0]
    jump[:, : N // 2] = 0.1
    assert (friction.euler_limit(even) / friction.euler_limit(jump)).item() == pytest.approx(0.5 * (1 + 10))


@pytest.mark.parametrize("stress", ["full", "unmixed"])
@pytest.mark.parametrize("stages", [2, 5, 20])
def test_the_longest_step_is_stable_and_a_much_longer_one_is_not(stress, stages):
    friction = Friction(0.01, 0.01, stress, (STEP, STEP))
    noise = torch.rand(3, 1, N, N, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    state = torch.cat((torch.ones_like(noise[:1]), noise[1:] - 0.5, torch.full_like(noise[:1], 10)))
    limit = stable_ratio(stages) * friction.euler_limit(state[0])

    def motion(step):
        current = state
        for _ in range(12):
            current = viscous_step(current, step, friction, stages)
        return (current[1:3].square().sum(0) / current[0]).sum().item()

    assert motion(limit) < motion(0 * limit)
    assert not motion(2 * limit) < 1e3 * motion(0 * limit)


@pytest.mark.parametrize("ratio", [0.0, 0.9, 1.0, 1.01, 2.5, 2.6, 30.0, 1000.0])
def test_fewest_stages_that_are_stable(ratio):
    stages = stages_for(ratio)
    assert stable_ratio(stages) >= ratio
    assert stages == 2 or stable_ratio(stages - 1) < ratio


@pytest.mark.parametrize(("eta", "zeta"), [(0.01, 0.0), (0.01, 0.02)])
@pytest.mark.parametrize(
    ("stress", "rate"), [("full", lambda eta, zeta: 2 * eta), ("unmixed", lambda e, z: 7 / 3 * e + z)]
)
def test_taylor_green_vortices_decay_as_theory_says(eta, zeta, stress, rate):
    """At low Mach number the exact solution of the Navier-Stokes equations decays as exp(-2 eta k^2 t).

    The unmixed stress brakes it by (7/3 eta + zeta) k^2: each component is diffused by 4/3 eta + zeta along its axis.
    """
    x, y = grid()
    speed, time, one = 0.02, 0.5, torch.ones(N, N, dtype=torch.float64)
    vx, vy = torch.sin(K * x) * torch.cos(K * y), -torch.cos(K * x) * torch.sin(K * y)
    pressure = 0.6 + speed**2 / 4 * (torch.cos(2 * K * x) + torch.cos(2 * K * y))
    initial = torch.stack((one, speed * vx, speed * vy, pressure)).unsqueeze(1)
    final = integrate(initial, [0.0, time], eta=eta, zeta=zeta, stress=stress, limiter="none")[:, 0, 1]
    for velocity, profile in ((final[1], vx), (final[2], vy)):
        left = 4 * (velocity * profile).mean().item() / speed
        assert -math.log(left) / (K**2 * time) == pytest.approx(rate(eta, zeta), rel=0.02)
