import pytest
import torch

from lightning_farms.data.simulation._euler import euler_step, to_conserved, to_primitive


def random_flow(dtype=torch.float64):
    noise = torch.rand(4, 3, 12, 16, generator=torch.Generator().manual_seed(0), dtype=dtype)
    return torch.stack((0.5 + noise[0], noise[1] - 0.5, noise[2] - 0.5, 0.5 + noise[3]))


def test_conversions_are_inverse():
    state = random_flow()
    torch.testing.assert_close(to_primitive(to_conserved(state)), state)


@pytest.mark.parametrize("limiter", ["van_leer", "none"])
def test_a_step_keeps_mass_momentum_and_energy_to_rounding(limiter):
    before = to_conserved(random_flow())
    after = euler_step(before, torch.full((3,), 0.01, dtype=torch.float64), (1 / 12, 1 / 16), limiter)
    assert (after - before).abs().amax() > 0.1
    torch.testing.assert_close(after.mean((2, 3)), before.mean((2, 3)), rtol=1e-14, atol=1e-15)


def test_a_trajectory_with_no_step_is_left_exactly_as_it_is():
    before = to_conserved(random_flow(torch.float32))
    after = euler_step(before, torch.tensor([0.01, 0.0, 0.01]), (1 / 12, 1 / 16), "van_leer")
    assert torch.equal(after[:, 1], before[:, 1])
    assert not torch.equal(after[:, 0], before[:, 0])


def test_a_uniform_wind_stays_as_it_is():
    wind = to_conserved(torch.tensor([1.3, 0.4, -0.7, 2.0]).reshape(4, 1, 1, 1).expand(4, 1, 8, 8))
    after = euler_step(wind, torch.tensor([0.02]), (1 / 8, 1 / 8), "van_leer")
    torch.testing.assert_close(after, wind, rtol=1e-6, atol=0)


def test_near_vacuum_between_parting_streams_stays_positive():
    state = torch.ones(4, 1, 32, 4, dtype=torch.float64) * torch.tensor([1.0, 0.0, 0.0, 0.05]).reshape(4, 1, 1, 1)
    state[1, :, :16], state[1, :, 16:] = -1.5, 1.5
    conserved = to_conserved(state)
    for _ in range(40):
        conserved = euler_step(conserved, torch.tensor([0.002], dtype=torch.float64), (1 / 32, 1 / 4), "van_leer")
    density, _, _, pressure = to_primitive(conserved)
    assert density.amin() > 0
    assert pressure.amin() > 0
    assert density.amin() < 0.1
