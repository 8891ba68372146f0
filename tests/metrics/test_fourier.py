"""The Fourier error's bins and bands."""

import pytest
import torch

from lightning_farms.metrics import FourierRMSE, fourier_rmse


@pytest.mark.parametrize(
    ("i", "j", "low", "high", "band"),
    [
        (0, 0, 1, 2, 0),
        (3, 0, 3, 4, 1),
        (0, 3, 3, 4, 1),
        (3, 4, 5, 6, 1),
        (2, 2, 2, 3, 1),
        (6, 4, 1, 7, 2),
        (3, 7, 1, 7, 2),
    ],
)
def test_a_wave_is_found_in_its_bin(i, j, low, high, band):
    """Half of a wave's amplitude is in its mode, a quarter for a product of two; the bands here have one bin."""
    x, y = torch.arange(16)[:, None] / 16, torch.arange(20) / 20
    wave = (torch.cos(2 * torch.pi * i * x) * torch.cos(2 * torch.pi * j * y)).double().reshape(1, 16, 20, 1, 1)
    expected = torch.zeros(3, dtype=torch.float64)
    expected[band] = 0.5 ** ((i > 0) + (j > 0))
    bands = fourier_rmse(wave, torch.zeros_like(wave), low=low, high=high)
    torch.testing.assert_close(bands, expected, atol=1e-6, rtol=0)


def test_modes_beyond_the_last_bin_are_left_out():
    x = torch.arange(16) / 16
    wave = torch.cos(2 * torch.pi * 6 * x)[:, None] * torch.cos(2 * torch.pi * 7 * x)  # floor(sqrt(85)) = 9 > 7
    bands = fourier_rmse(wave.reshape(1, 16, 16, 1, 1), torch.zeros(1, 16, 16, 1, 1), low=2, high=5)
    torch.testing.assert_close(bands, torch.zeros(3), atol=1e-6, rtol=0)


@pytest.mark.parametrize(("low", "high"), [(0, 3), (3, 3), (4, 3), (-1, 2)])
def test_bands_out_of_order(low, high):
    with pytest.raises(ValueError, match=rf"0 < low < high, but got {low} and {high}"):
        FourierRMSE(low=low, high=high)
    with pytest.raises(ValueError, match=r"0 < low < high"):
        fourier_rmse(torch.ones(1, 32, 32, 1, 1), torch.ones(1, 32, 32, 1, 1), low=low, high=high)


@pytest.mark.parametrize("shape", [(24, 32), (32, 24), (25, 25)])
def test_a_grid_too_coarse_for_the_bands(shape):
    """Where PDEBench's mean over an empty band is NaN."""
    coarse = torch.ones(1, *shape, 1, 1)
    message = rf"`high` to be less than 12, half of the shorter side of fields of {shape[0]} x {shape[1]}.*but got 12"
    with pytest.raises(ValueError, match=message):
        FourierRMSE().update(coarse, coarse)
    fine = torch.ones(1, shape[0] + 2, shape[1] + 2, 1, 1)
    assert fourier_rmse(fine, fine).tolist() == [0.0, 0.0, 0.0]


def test_another_number_of_bins_is_refused():
    metric = FourierRMSE(low=1, high=2)
    metric.update(torch.ones(1, 8, 8, 1, 1), torch.ones(1, 8, 8, 1, 1))
    with pytest.raises(ValueError, match=r"Fourier bins\), but got \(8, 1, 1\) after \(4, 1, 1\)"):
        metric.update(torch.ones(1, 16, 16, 1, 1), torch.ones(1, 16, 16, 1, 1))
    torch.testing.assert_close(metric.compute(), torch.zeros(3))
