import itertools
import math

import numpy as np
import pytest
import torch
from scipy.optimize import brentq

from lightning_farms.data.simulation import solver
from lightning_farms.data.simulation._euler import GAMMA, to_conserved
from lightning_farms.data.simulation.solver import integrate


def centres(resolution):
    line = (torch.arange(resolution, dtype=torch.float64) + 0.5) / resolution
    return torch.meshgrid(line, line, indexing="ij")


def uniform(resolution, *, pressure=1.0):
    x, _ = centres(resolution)
    one = torch.ones_like(x)
    return torch.stack((one, 0 * one, 0 * one, pressure * one)).unsqueeze(1)


def along_y(state):
    """The same flow with the axes, and the velocities along them, exchanged."""
    return state[[0, 2, 1, 3]].transpose(-1, -2)


def entropy_wave(resolution, time):
    """Cell means of a density wave carried by a uniform flow: an exact solution of the Euler equations."""
    x, y = centres(resolution)
    mean = np.sinc(1 / resolution) ** 2
    density = 1 + 0.2 * mean * torch.sin(2 * math.pi * (x + y - 1.5 * time))
    one = torch.ones_like(density)
    return torch.stack((density, one, 0.5 * one, one)).unsqueeze(1)


def isentropic_vortex(resolution, time, strength=1.0, box=10.0):
    """A vortex carried by a uniform flow, the classical exact solution (Shu 1998), in a box scaled to 1."""
    x, y = centres(resolution)
    x, y = (box * ((z - speed * time) % 1 - 0.5) for z, speed in ((x, 1.0), (y, 0.5)))
    profile = torch.exp(0.5 * (1 - x**2 - y**2))
    temperature = 1 - (GAMMA - 1) * strength**2 / (8 * GAMMA * math.pi**2) * profile**2
    density = temperature ** (1 / (GAMMA - 1))
    swirl = strength / (2 * math.pi) * profile
    return torch.stack((density, 1 - swirl * y, 0.5 + swirl * x, density * temperature)).unsqueeze(1)


@pytest.mark.parametrize(
    ("exact", "time", "limiter", "resolutions", "order"),
    [
        (entropy_wave, 0.25, "none", (16, 32, 64), 1.95),
        (entropy_wave, 0.25, "van_leer", (32, 64), 1.8),
        (isentropic_vortex, 0.1, "none", (32, 64), 1.9),
    ],
)
def test_second_order_on_smooth_exact_solutions(exact, time, limiter, resolutions, order):
    errors = [
        (integrate(exact(n, 0.0), [0.0, time], limiter=limiter)[:, :, 1] - exact(n, time)).abs().mean().item()
        for n in resolutions
    ]
    orders = [math.log2(coarse / fine) for coarse, fine in itertools.pairwise(errors)]
    assert min(orders) > order, (errors, orders)


@pytest.mark.parametrize(("dtype", "rounding"), [(torch.float32, 5e-7), (torch.float64, 1e-14)])
@pytest.mark.parametrize(("eta", "stress"), [(0.0, "full"), (0.01, "full"), (0.01, "unmixed")])
def test_mass_momentum_and_energy_are_conserved_to_rounding(dtype, rounding, eta, stress):
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(4, 2, 16, 16, generator=generator, dtype=dtype)
    initial = torch.stack((1 + noise[0], noise[1] - 0.5, 0.5 * noise[2], 1 + noise[3]))
    frames = to_conserved(integrate(initial, [0.0, 0.25, 0.5], eta=eta, zeta=eta, stress=stress)).double()
    assert frames[:, :, 2].sub(frames[:, :, 0]).abs().amax() > 0.1
    totals, scale = frames.sum((3, 4)), frames.abs().sum((3, 4)).amax((1, 2))
    drift = (totals - totals[:, :, :1]).abs().amax((1, 2)) / scale
    assert drift.max() < rounding, drift


@pytest.mark.parametrize("turn", [lambda state: state, along_y])
@pytest.mark.parametrize("waves", [1, 2])
def test_shear_decays_at_the_viscous_rate(turn, waves):
    resolution, nu, time = 32, 0.02, 0.25
    initial = uniform(resolution)
    _, y = centres(resolution)
    profile = torch.sin(2 * math.pi * waves * y)
    initial[1] += 0.01 * profile
    final = turn(integrate(turn(initial), [0.0, time], eta=nu, limiter="none")[:, :, 1])
    amplitude = 2 * (final[1, 0] * profile).mean().item() / 0.01
    assert amplitude == pytest.approx(math.exp(-nu * (2 * math.pi * waves) ** 2 * time), rel=0.02)


@pytest.mark.parametrize("turn", [lambda state: state, along_y])
@pytest.mark.parametrize(("eta", "zeta"), [(0.01, 0.0), (0.0, 0.02), (0.01, 0.01)])
def test_sound_travels_and_decays_as_theory_says(turn, eta, zeta):
    """Landau and Lifshitz, equation 79.6: amplitude exp(-(4/3 eta + zeta) k^2 t / 2); here the speed of sound is 1."""
    resolution, small, k = 32, 1e-4, 2 * math.pi
    x, _ = centres(resolution)
    initial = uniform(resolution, pressure=1 / GAMMA)
    for field in (0, 1, 3):
        initial[field] += small * torch.sin(k * x)
    final = turn(integrate(turn(initial), [0.0, 1.0], eta=eta, zeta=zeta, limiter="none")[:, :, 1])
    mode = torch.fft.fft2(final[1, 0])[1, 0] / torch.fft.fft2(initial[1, 0])[1, 0]
    assert mode.abs().item() == pytest.approx(math.exp(-(4 / 3 * eta + zeta) * k**2 / 2), rel=0.02)
    assert abs(mode.angle().item()) < 0.06


@pytest.mark.parametrize("turn", [lambda state: state, along_y])
def test_friction_heats_where_the_shear_is(turn):
    """dp/dt = (gamma - 1) mu (dv/dy)^2, here with (dv/dy)^2 ~ cos^2, before sound has spread it."""
    resolution, nu, speed, time, k = 32, 0.01, 0.01, 0.01, 2 * math.pi
    initial = uniform(resolution)
    _, y = centres(resolution)
    initial[1] += speed * torch.sin(k * y)
    final = turn(integrate(turn(initial), [0.0, time], eta=nu, limiter="none")[:, :, 1])
    expected = (GAMMA - 1) * nu * (k * speed) ** 2 * time * torch.cos(k * y) ** 2
    torch.testing.assert_close(final[3, 0] - 1, expected, rtol=0, atol=0.03 * expected.max().item())


def test_a_very_viscous_gas_is_stable():
    frames = integrate(isentropic_vortex(16, 0.0, strength=5.0), [0.0, 0.02], eta=1.0, zeta=1.0)
    motion = (frames[1:3] - frames[1:3].mean((3, 4), keepdim=True)).square().sum(0).mean((2, 3))
    assert motion[0, 1] < motion[0, 0]


def speed_change(pressure, density, before):
    """Speed gained across a wave that takes a gas from one pressure to another (Toro, equations 4.6 and 4.7)."""
    if pressure > before:
        a, b = 2 / ((GAMMA + 1) * density), before * (GAMMA - 1) / (GAMMA + 1)
        return (pressure - before) * math.sqrt(a / (pressure + b))
    sound = math.sqrt(GAMMA * before / density)
    return 2 * sound / (GAMMA - 1) * ((pressure / before) ** ((GAMMA - 1) / (2 * GAMMA)) - 1)


def exact_star_state(left, right):
    """Pressure and speed between the waves of a Riemann problem of gases at rest (Toro, section 4.2)."""
    pressure = brentq(lambda p: speed_change(p, *left) + speed_change(p, *right), 1e-6, 10)
    return pressure, 0.5 * (speed_change(pressure, *right) - speed_change(pressure, *left))


def falls_through(profile, level, x):
    """Where a profile last falls through a level, by linear interpolation."""
    i = int(torch.nonzero((profile[:-1] >= level) & (profile[1:] < level)).amax())
    share = (profile[i] - level) / (profile[i] - profile[i + 1])
    return (x[i] + share * (x[i + 1] - x[i])).item()


@pytest.mark.parametrize("turn", [lambda state: state, along_y])
def test_shock_tube_matches_the_exact_riemann_solution(turn):
    x = (torch.arange(256, dtype=torch.float64) + 0.5) / 256
    inside = ((x > 0.25) & (x < 0.75)).reshape(1, -1, 1).expand(1, 256, 4)
    one = torch.ones(1, 256, 4, dtype=torch.float64)
    initial = torch.stack(
        (torch.where(inside, 1.0, 0.125 * one), 0 * one, 0 * one, torch.where(inside, 1.0, 0.1 * one))
    )
    final = turn(integrate(turn(initial), [0.0, 0.1])[:, :, 1])[:, 0, :, 0]
    pressure, speed = exact_star_state((1.0, 1.0), (0.125, 0.1))
    plateau = int((0.75 + 0.1 * speed) * 256)
    between = slice(plateau - 6, plateau + 6)
    torch.testing.assert_close(final[3, between], torch.full((12,), pressure, dtype=torch.float64), rtol=0.02, atol=0)
    torch.testing.assert_close(final[1, between], torch.full((12,), speed, dtype=torch.float64), rtol=0.02, atol=0)
    torch.testing.assert_close(final[:, 0], initial[:, 0, 0, 0], rtol=1e-6, atol=1e-9)
    # The shock's speed into a gas at rest, Toro, equation 4.57; the density behind it, 4.50; at the contact, 4.56.
    ratio, q = pressure / 0.1, (GAMMA - 1) / (GAMMA + 1)
    shock = math.sqrt(GAMMA * 0.1 / 0.125 * ((GAMMA + 1) / (2 * GAMMA) * ratio + (GAMMA - 1) / (2 * GAMMA)))
    behind = 0.125 * (ratio + q) / (q * ratio + 1)
    inner = pressure ** (1 / GAMMA)
    density = final[0, 128:]
    assert falls_through(density, 0.5 * (behind + 0.125), x[128:]) == pytest.approx(0.75 + 0.1 * shock, abs=1 / 256)
    assert falls_through(density, 0.5 * (inner + behind), x[128:]) == pytest.approx(0.75 + 0.1 * speed, abs=1 / 256)
    # Mirror symmetry of the two halves.
    torch.testing.assert_close(final[3], final[3].flip(0), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("turn", [lambda state: state, along_y])
def test_colliding_streams_match_the_exact_riemann_solution(turn):
    speed = torch.where(torch.arange(128) < 64, 0.5, -0.5).double().reshape(1, -1, 1).expand(1, 128, 4)
    one = torch.ones_like(speed)
    final = turn(integrate(turn(torch.stack((one, speed, 0 * one, one))), [0.0, 0.1])[:, :, 1])[:, 0, :, 0]
    pressure = brentq(lambda p: speed_change(p, 1.0, 1.0) - 0.5, 1, 10)
    torch.testing.assert_close(final[3, 58:70], torch.full((12,), pressure, dtype=torch.float64), rtol=0.02, atol=0)
    for field, sign in ((0, 1), (1, -1), (3, 1)):
        torch.testing.assert_close(final[field], sign * final[field].flip(0), rtol=1e-9, atol=1e-12)


def test_trajectories_do_not_influence_each_other():
    hot = uniform(16, pressure=10.0)
    together = integrate(torch.cat((entropy_wave(16, 0.0), hot), 1), [0.0, 0.1], eta=0.01)
    alone = integrate(entropy_wave(16, 0.0), [0.0, 0.1], eta=0.01)
    torch.testing.assert_close(together[:, :1], alone, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("stress", ["full", "unmixed"])
def test_second_order_with_friction(stress):
    """Against the same flow on a grid two to four times as fine."""

    def flow(resolution):
        x, y = (2 * math.pi * line for line in centres(resolution))
        smooth = torch.stack((1 + 0.1 * torch.sin(x), torch.sin(x + y), 0.5 * torch.cos(y), 2 + 0.2 * torch.cos(x - y)))
        return integrate(smooth.unsqueeze(1), [0.0, 0.05], eta=0.02, zeta=0.01, stress=stress, limiter="none")[:, 0, 1]

    fine = flow(64)
    errors = [(flow(n) - torch.nn.functional.avg_pool2d(fine, 64 // n)).abs().mean().item() for n in (16, 32)]
    assert errors[0] / errors[1] > 4.2, errors  # 5, as 1/16^2 - 1/64^2 to 1/32^2 - 1/64^2


def test_looking_seldom_changes_nothing(monkeypatch):
    """As on an accelerator: trajectories that are done wait for the others."""
    flows = torch.cat((entropy_wave(16, 0.0), uniform(16, pressure=10.0), entropy_wave(16, 0.3)), 1)
    expected = integrate(flows, [0.0, 0.05, 0.1], eta=0.01)
    monkeypatch.setattr(solver, "_unchecked_steps", lambda device: 5)
    assert torch.equal(integrate(flows, [0.0, 0.05, 0.1], eta=0.01), expected)


def test_initial_state_is_left_alone_and_returned_first():
    initial = entropy_wave(16, 0.0)
    copy = initial.clone()
    calls = []
    frames = integrate(initial, [0.0, 0.05, 0.2], on_frame=lambda: calls.append(1))
    assert torch.equal(initial, copy)
    assert torch.equal(frames[:, :, 0], copy)
    assert (frames.shape, len(calls)) == ((4, 1, 3, 16, 16), 2)


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, 1e30])
def test_lost_positivity_names_the_trajectory_and_a_remedy(value):
    initial = torch.cat((uniform(8), uniform(8)), 1)
    initial[3, 1, 2, 3] = value
    with pytest.raises(RuntimeError, match=r"positive and finite.* in trajectory \[17\].*Raise `resolution`"):
        integrate(initial, [0.0, 0.1], names=[11, 17])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"initial": torch.ones(4, 8, 8)}, r"`initial` to be of shape \(4, B, X, Y\)"),
        ({"initial": torch.ones(4, 1, 2, 8)}, r"`initial` to be of shape"),
        ({"times": [0.0, 0.0]}, "`times` to be increasing"),
        ({"times": []}, "`times` to be increasing and not empty"),
        ({"eta": -0.1}, "`eta` to be at least 0 and finite, but got -0.1"),
        ({"zeta": math.nan}, "`zeta` to be at least 0 and finite, but got nan"),
        ({"cfl": 1.5}, r"`cfl` to be in \(0, 1\]"),
        ({"limiter": "minmod"}, "`limiter` to be 'van_leer' or 'none'"),
        ({"stress": "bulk"}, "`stress` to be 'unmixed' or 'full'"),
    ],
)
def test_wrong_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        integrate(**({"initial": uniform(8), "times": [0.0, 0.1]} | arguments))
