import numpy as np
import pytest
import scipy.fft
import torch

from lightning_farms.models.dpot._fourier_modes import analyse, synthesise

# height, width, modes: even, odd, single, with all frequencies and with few
SIZES = [(16, 16, 32), (16, 16, 5), (8, 6, 4), (5, 7, 3), (5, 7, 9), (1, 1, 2), (1, 2, 2), (2, 1, 1), (6, 8, 1)]


@pytest.mark.parametrize(("height", "width", "modes"), SIZES)
def test_analysis_is_scipys_transform_cut_off(height, width, modes):
    field = np.random.default_rng(0).standard_normal((2, height, width, 3))
    expected = scipy.fft.rfft2(field, axes=(1, 2), norm="ortho")[:, :modes, :modes]
    spectrum = analyse(torch.from_numpy(field), modes).numpy()
    np.testing.assert_allclose(spectrum[:, 0] + 1j * spectrum[:, 1], expected, rtol=0, atol=1e-13)


@pytest.mark.parametrize(("height", "width", "modes"), SIZES)
def test_synthesis_is_scipys_inverse_of_any_coefficients(height, width, modes):
    """Also of those that are no real field's: the imaginary part of frequency zero has no effect."""
    kept = min(modes, height), min(modes, width // 2 + 1)
    spectrum = np.random.default_rng(0).standard_normal((2, 2, *kept, 3))
    padded = np.zeros((2, height, width // 2 + 1, 3), dtype=complex)
    padded[:, : kept[0], : kept[1]] = spectrum[:, 0] + 1j * spectrum[:, 1]
    expected = scipy.fft.irfft2(padded, s=(height, width), axes=(1, 2), norm="ortho")
    result = synthesise(torch.from_numpy(spectrum), height, width).numpy()
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-13)


def test_float32_is_exact_to_its_last_digits():
    field = np.random.default_rng(0).standard_normal((2, 64, 64, 2))
    expected = scipy.fft.rfft2(field, axes=(1, 2), norm="ortho")
    spectrum = analyse(torch.from_numpy(field).float(), 64)
    assert spectrum.dtype == torch.float32
    np.testing.assert_allclose(spectrum[:, 0] + 1j * spectrum[:, 1], expected, rtol=0, atol=1e-5)
