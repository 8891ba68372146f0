import math

import pytest
import torch

from lightning_farms.data import SimulationConfig, random_initial_state, simulate_cfd
from lightning_farms.data.fields import flow_statistics
from lightning_farms.data.simulation.solver import UnstableFlowError, integrate

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


def test_a_shorter_set_is_the_beginning_of_the_longer_one():
    long = simulate_cfd(SimulationConfig(trajectories=2, resolution=8, frames=5, eta=0.05), dtype=torch.float64)
    short = simulate_cfd(
        SimulationConfig(trajectories=2, resolution=8, frames=3, eta=0.05, duration=0.5), dtype=torch.float64
    )
    assert short.t.tolist() == [0.0, 0.25, 0.5]
    for name in ("density", "pressure", "vx", "vy"):
        torch.testing.assert_close(getattr(short, name), getattr(long, name)[:, :3], rtol=0, atol=0)


def test_a_default_duration_changes_no_name():
    """The text by which files and checkpoints made before there was a duration are found."""
    assert "duration" not in repr(SMALL)
    assert repr(SimulationConfig(duration=0.5)).endswith(", seed=0, duration=0.5)")
    assert eval(repr(SMALL), {"SimulationConfig": SimulationConfig}) == SMALL
    for duration in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="`duration` to be positive and finite, but got"):
            SimulationConfig(duration=duration)


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


def test_settings_reach_the_solver():
    flows = [
        simulate_cfd(SimulationConfig(trajectories=1, resolution=8, frames=2, **{name: value}))
        for name, value in (("stress", "unmixed"), ("stress", "full"), ("windowed_share", 0.0), ("windowed_share", 1.0))
    ]
    assert not torch.equal(flows[0].vx, flows[1].vx)
    assert (flows[2].vx[:, 0] != 0).all()
    assert (flows[3].vx[:, 0, 0].abs() < 1e-6).all()


# PDEBench's own generator at M0.1, eta = zeta = 0.01, 64x64, 40 trajectories: mean over the trajectories of each figure
# of `flow_statistics` at t = 0, 0.25, 0.5, 0.75, 1, and its standard deviation over them.
PDEBENCH = {
    "density_mean": ([5.33, 5.33, 5.33, 5.33, 5.33], [2.94, 2.94, 2.94, 2.94, 2.94]),
    "pressure_mean": ([27.8, 27.88, 27.89, 27.9, 27.9], [24.7, 24.8, 24.8, 24.8, 24.8]),
    "vx_mean": (
        [0.0001492, 0.0004155, 0.0002968, 0.0003084, 0.0003401],
        [0.00237, 0.00257, 0.00257, 0.00258, 0.0026],
    ),
    "vy_mean": (
        [0.0001208, 6.803e-05, 8.51e-05, 3.982e-05, 6.028e-05],
        [0.00228, 0.00256, 0.0026, 0.00253, 0.00256],
    ),
    "density_std": ([0.08683, 0.108, 0.1063, 0.1037, 0.1033], [0.0496, 0.0556, 0.0536, 0.0537, 0.0524]),
    "pressure_std": ([0.08419, 0.03892, 0.02757, 0.02088, 0.01639], [0.0589, 0.0239, 0.0174, 0.0139, 0.00983]),
    "vx_std": ([0.05142, 0.02089, 0.01323, 0.0108, 0.00864], [0.0225, 0.0107, 0.00632, 0.00536, 0.00438]),
    "vy_std": ([0.05075, 0.02185, 0.01478, 0.01024, 0.008596], [0.0228, 0.0106, 0.00724, 0.00445, 0.00415]),
    "kinetic_energy": ([1.0, 0.1811, 0.08379, 0.05257, 0.03798], [0.0, 0.0606, 0.0316, 0.0262, 0.0214]),
}


@pytest.fixture(scope="module")
def drawn():
    flow = simulate_cfd(SimulationConfig(trajectories=40, resolution=24, frames=5))
    return flow_statistics(flow.density, flow.pressure, flow.vx, flow.vy)


@pytest.mark.parametrize("name", PDEBENCH)
def test_statistics_are_those_of_pdebench(drawn, name):
    """Two samples of 40 flows: means within four standard errors of each other, spreads within a factor of two.

    One mean in 15000 lies farther off by chance. A standard deviation of 40 has a standard error of 11 % for a normal
    law, at most twice that for the laws here; the factor of two is four of those.
    """
    ours = getattr(drawn, name)
    mean, spread = (torch.tensor(figures, dtype=torch.float64) for figures in PDEBENCH[name])
    error = torch.sqrt((ours.var(0) + spread.square()) / 40)
    assert ((ours.mean(0) - mean).abs() <= 4 * error + 1e-12).all()
    known = spread > 0
    ratio = ours.std(0)[known] / spread[known]
    assert ((ratio > 0.5) & (ratio < 2)).all(), ratio


@pytest.mark.parametrize("option", [{"windowed_share": 0.0}, {"mach": 0.2}])
def test_these_tolerances_tell_other_settings_apart(option):
    options = {"resolution": 16, "mach": 0.1, "seed": 0} | option
    states = torch.stack([random_initial_state(i, **options) for i in range(40)], 1).unsqueeze(2)
    ours = flow_statistics(*states[[0, 3, 1, 2]]).vx_std[:, 0]
    mean, spread = (figures[0] for figures in PDEBENCH["vx_std"])
    assert abs(ours.mean().item() - mean) > 4 * math.sqrt((ours.var().item() + spread**2) / 40)


def test_no_cuda(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert simulate_cfd(SMALL, indices=range(1), device="auto").vx.device.type == "cpu"
    with pytest.raises(ValueError, match=r"`device` to be one that PyTorch finds, but got 'cuda'.*Use 'auto' or 'cpu'"):
        simulate_cfd(SMALL, device="cuda")


@pytest.mark.gpu
def test_the_gpu_gives_the_same_flows():
    here, there = simulate_cfd(SMALL, dtype=torch.float64), simulate_cfd(SMALL, device="cuda", dtype=torch.float64)
    for ours, theirs in zip(here[:4], there[:4], strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


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
        ("windowed_share", 1.5, r"in \[0, 1\]"),
        ("stress", "bulk", r"one of \['unmixed', 'full'\]"),
    ],
)
def test_wrong_settings(setting, value, rule):
    with pytest.raises(ValueError, match=f"`{setting}` to be {rule}, but got {value!r}"):
        SimulationConfig(**{setting: value})


def test_an_unstable_flow_is_integrated_again_with_shorter_steps_by_itself():
    """On this coarse grid one step of friction takes flow 2's pressure below zero; its neighbours keep their steps."""
    config = SimulationConfig(trajectories=20, resolution=16, frames=3, mach=1.0, eta=0.1, zeta=0.1, seed=4)
    initial = torch.stack(
        [
            random_initial_state(i, resolution=16, mach=1.0, seed=4, windowed_share=config.windowed_share)
            for i in (1, 2)
        ],
        1,
    ).float()
    options = {"eta": 0.1, "zeta": 0.1, "stress": config.stress}
    with pytest.raises(UnstableFlowError, match=r"did not in trajectory \[2\]"):
        integrate(initial, [0.0, 0.5, 1.0], names=(1, 2), **options)
    flow = simulate_cfd(config, indices=range(1, 3))
    torch.testing.assert_close(flow.pressure[0], integrate(initial[:, :1], [0.0, 0.5, 1.0], **options)[3, 0])
    shorter = integrate(initial[:, 1:], [0.0, 0.5, 1.0], cfl=0.4, **options)
    torch.testing.assert_close(flow.pressure[1], shorter[3, 0])
    assert flow.pressure.min() > 0
