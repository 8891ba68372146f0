import math

import numpy as np
import pytest
import torch

from lightning_farms.data import random_initial_state


@pytest.fixture(scope="module")
def states():
    return drawn_states(0.0)


@pytest.fixture(scope="module")
def windowed_states():
    return drawn_states(1.0)


def drawn_states(windowed_share):
    options = {"resolution": 32, "mach": 0.3, "seed": 5, "windowed_share": windowed_share}
    return torch.stack([random_initial_state(i, **options) for i in range(200)], 1).numpy()


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


def test_share_of_windows():
    drawn = [random_initial_state(i, resolution=8, mach=0.1, seed=1) for i in range(400)]
    still = sum(bool((state[1:3].square().sum(0) < 1e-12).any()) for state in drawn)
    assert still / 400 == pytest.approx(0.625, abs=4 * math.sqrt(0.625 * 0.375 / 400))


def test_outside_the_window_an_even_gas_is_at_rest_inside_it_nothing_changes(states, windowed_states):
    """The window is all that differs from the draw without one."""
    density, vx, _, pressure = windowed_states
    corner = (slice(None), slice(0, 2), slice(0, 2))
    rest = density[corner][:, 0, 0]
    np.testing.assert_allclose(density[corner], np.broadcast_to(rest[:, None, None], (200, 2, 2)), rtol=1e-6)
    np.testing.assert_allclose(rest, states[0].mean((1, 2)), rtol=1e-6)
    np.testing.assert_allclose(pressure[:, 0, 0], states[3].mean((1, 2)), rtol=1e-6)
    assert np.abs(vx[corner]).max() < 1e-6
    centre = (slice(None), slice(None), slice(10, 16), slice(15, 17))  # inside every window
    np.testing.assert_allclose(windowed_states[centre], states[centre], rtol=1e-3, atol=1e-4)


def test_side_edge_and_places_of_windows():
    """As measured: side 0.45 at half height, edges of a hyperbolic tangent of width 0.01, places uniform."""
    n, starts = 128, []
    x = (np.arange(n) + 0.5) / n
    for i in range(30):
        options = {"resolution": n, "mach": 0.1, "seed": 2}
        even, windowed = (random_initial_state(i, **options, windowed_share=share)[1] for share in (0.0, 1.0))
        window = (windowed / even).numpy()
        for profile in (window[:, n // 2], window[n // 2]):  # through the part that is inside every window
            inside = np.nonzero(profile > 0.5)[0]
            assert len(inside) / n == pytest.approx(0.45, abs=2 / n)
            start = x[inside[0]] - np.arctanh(2 * profile[inside[0]] - 1) * 0.01
            expected = 0.25 * (1 + np.tanh((x - start) / 0.01)) * (1 + np.tanh((start + 0.45 - x) / 0.01))
            np.testing.assert_allclose(profile, expected, rtol=0, atol=1e-4)
            starts.append(start)
    along_x, along_y = np.array(starts).reshape(-1, 2).T
    for places, highest in ((along_x, 0.275), (along_y, 0.45)):
        assert 0.1 <= places.min() < 0.15
        assert highest - 0.06 < places.max() <= highest
