import math

import numpy as np
import pytest
import torch

from lightning_farms.data import random_initial_state


@pytest.fixture(scope="module")
def states():
    return torch.stack([random_initial_state(i, resolution=32, mach=0.3, seed=5) for i in range(200)], 1).numpy()


def test_distribution_of_the_mean_gas(states):
    density = states[0].mean((1, 2))
    temperature = states[3].mean((1, 2)) / density
    for drawn in (density, temperature):
        assert 0.1 < drawn.min() < 0.6
        assert 9.5 < drawn.max() < 10
        assert drawn.mean() == pytest.approx(5.05, abs=4 * 2.86 / math.sqrt(200))


def test_mean_speed_is_the_mach_number_times_the_speed_of_sound(states):
    temperature = states[3].mean((1, 2)) / states[0].mean((1, 2))
    speed = np.sqrt(states[1] ** 2 + states[2] ** 2).mean((1, 2))
    np.testing.assert_allclose(speed / np.sqrt(5 / 3 * temperature), 0.3, rtol=1e-9)


@pytest.mark.parametrize("field", [0, 3])
def test_relative_perturbations_are_between_1_and_20_percent_and_positive(states, field):
    mean = states[field].mean((1, 2), keepdims=True)
    relative = np.abs(states[field] / mean - 1).mean((1, 2))
    assert 0.01 <= relative.min() < 0.03
    assert 0.18 < relative.max() <= 0.2
    assert (states[field] > 0.0999 * mean).all()


def test_waves_and_their_amplitudes(states):
    """Energy only at 1 <= |kx|, |ky| <= 4, falling as 1/|k|: the square of the amplitude |k|^(-1/2)."""
    power = np.abs(np.fft.fft2(states[1])) ** 2
    power /= power.sum((1, 2), keepdims=True)
    k = np.abs(np.fft.fftfreq(32, 1 / 32))
    allowed = ((k >= 1) & (k <= 4))[:, None] & ((k >= 1) & (k <= 4))
    assert power[:, ~allowed].sum(1).max() < 1e-20
    size = np.sqrt(k[:, None] ** 2 + k**2)
    short, long = (power.mean(0)[allowed & band].mean() for band in (size > 5, size < 1.5))
    assert long / short == pytest.approx(4, rel=0.25)


def test_depends_on_seed_and_index_alone():
    draw = [random_initial_state(i, resolution=8, mach=0.1, seed=s) for s, i in ((0, 1), (1, 0), (0, 1))]
    torch.manual_seed(3)
    assert torch.equal(draw[0], draw[2])
    assert torch.equal(draw[0], random_initial_state(1, resolution=8, mach=0.1, seed=0))
    assert not torch.equal(draw[0], draw[1])


def test_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    random_initial_state(0, resolution=8, mach=0.1, seed=0)
    assert torch.equal(before, torch.get_rng_state())
