import math

import pytest
import torch

from lightning_farms.data import SimulationConfig, random_initial_state, simulate_cfd

SMALL = SimulationConfig(trajectories=3, resolution=8, frames=3)


def test_fields_coordinates_and_settings():
    flow = simulate_cfd(SMALL)
    for field in (flow.density, flow.pressure, flow.vx, flow.vy):
        assert (field.shape, field.dtype) == ((3, 3, 8, 8), torch.float32)
        assert field.isfinite().all()
    assert flow.t.tolist() == [0.0, 0.5, 1.0]
    torch.testing.assert_close(flow.x, torch.arange(8) / 8 + 1 / 16)
    assert torch.equal(flow.x, flow.y)
    assert (flow.eta, flow.zeta, flow.mach) == (0.01, 0.01, 0.1)
    first = random_initial_state(2, resolution=8, mach=0.1, seed=0).float()
    torch.testing.assert_close(torch.stack((flow.density, flow.vx, flow.vy, flow.pressure))[:, 2, 0], first)


def test_friction_slows_the_flow_and_heats_the_gas():
    """Total energy is kept, so what the motion loses is found in the pressure."""
    flow = simulate_cfd(SMALL, dtype=torch.float64)
    motion = 0.5 * flow.density * (flow.vx**2 + flow.vy**2)
    energy = (motion + flow.pressure * 1.5).mean((2, 3))
    torch.testing.assert_close(energy, energy[:, :1].expand(3, 3), rtol=1e-12, atol=0)
    assert (motion[:, 2].mean((1, 2)) < 0.5 * motion[:, 0].mean((1, 2))).all()


def test_a_part_equals_the_same_part_of_the_whole():
    whole, part = simulate_cfd(SMALL), simulate_cfd(SMALL, indices=range(1, 3))
    larger = simulate_cfd(SimulationConfig(trajectories=4, resolution=8, frames=3))
    torch.testing.assert_close(part.density, whole.density[1:], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(larger.vx[:3], whole.vx, rtol=1e-5, atol=1e-6)


def test_precision_is_enough_in_float32():
    single, double = simulate_cfd(SMALL), simulate_cfd(SMALL, dtype=torch.float64)
    torch.testing.assert_close(single.vx.double(), double.vx, rtol=0, atol=1e-4)
    torch.testing.assert_close(single.pressure.double(), double.pressure, rtol=1e-4, atol=0)


@pytest.mark.parametrize("indices", [range(0), range(2, 4), range(-1, 1)])
def test_indices_outside_the_set(indices):
    with pytest.raises(ValueError, match=r"`indices` to lie in \[0, 3\)"):
        simulate_cfd(SMALL, indices=indices)


@pytest.mark.parametrize(
    ("setting", "value", "rule"),
    [
        ("trajectories", 0, "an integer of at least 1"),
        ("resolution", 4, "an integer of at least 8"),
        ("resolution", 32.0, "an integer of at least 8"),
        ("frames", 1, "an integer of at least 2"),
        ("seed", -1, "an integer of at least 0"),
        ("mach", -0.1, r"in \[0, 2\]"),
        ("mach", math.nan, r"in \[0, 2\]"),
        ("eta", -1e-9, "at least 0 and finite"),
        ("zeta", math.inf, "at least 0 and finite"),
    ],
)
def test_wrong_settings(setting, value, rule):
    with pytest.raises(ValueError, match=f"`{setting}` to be {rule}, but got {value}"):
        SimulationConfig(**{setting: value})
