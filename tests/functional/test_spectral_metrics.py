"""Metrics of a spectrum against numpy and scipy."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_farms.functional.spectral_metrics import effective_rank, log_norm, spectral_density, stable_rank
from lightning_farms.functional.spectrum import esd


def draw(*shape):
    return np.random.RandomState(0).lognormal(0, 2, shape)


def test_effective_rank_is_the_exponential_of_scipys_entropy():
    values = draw(3, 4, 50)
    torch.testing.assert_close(
        effective_rank(torch.tensor(values)), torch.tensor(np.exp(stats.entropy(values, axis=-1))), rtol=1e-12, atol=0
    )


def test_effective_rank_of_singular_values_is_roy_and_vetterlis():
    matrix = np.random.RandomState(1).standard_normal((30, 20))
    singular = np.linalg.svd(matrix, compute_uv=False)
    expected = np.exp(stats.entropy(singular))
    assert effective_rank(torch.tensor(singular**2).sqrt()).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("values", "expected"), [([1.0] * 7, 7), ([0.0, 0.0, 5.0], 1), ([0.0, 2.0, 2.0], 2), ([1e-30] * 3, 3)]
)
def test_effective_rank_limits(values, expected):
    assert effective_rank(torch.tensor(values)).item() == pytest.approx(expected, rel=1e-12)
    assert effective_rank(torch.zeros(3)).isnan()


def test_log_norm_is_numpys_frobenius_norm():
    matrices = np.random.RandomState(0).standard_normal((4, 9, 6))
    values = torch.tensor(np.linalg.svd(matrices, compute_uv=False) ** 2)
    expected = np.log10(np.linalg.norm(matrices, "fro", (1, 2)) ** 2)
    torch.testing.assert_close(log_norm(values), torch.tensor(expected), rtol=1e-12, atol=1e-12)
    assert log_norm(torch.zeros(2)).item() == -math.inf


@pytest.mark.parametrize("bins", [1, 7, 30])
def test_density_is_numpys(bins):
    values = draw(2, 3, 200)
    edges, density = spectral_density(torch.tensor(values), bins=bins)
    assert edges.shape == (2, 3, bins + 1)
    for index in np.ndindex(2, 3):
        low, high = values[index].min(), values[index].max()
        assert (edges[index][0].item(), edges[index][-1].item()) == (low, high)
        np.testing.assert_allclose(edges[index], np.geomspace(low, high, bins + 1), rtol=1e-12)
        expected, _ = np.histogram(values[index], edges[index].numpy(), density=True)
        np.testing.assert_allclose(density[index], expected, rtol=1e-9)


@pytest.mark.parametrize(("count", "bins"), [(1, 8), (100, 20), (5000, 64)])
def test_number_of_bins_follows_the_number_of_eigenvalues(count, bins):
    assert spectral_density(torch.tensor(draw(count))).density.shape == (bins,)


@pytest.mark.parametrize("tiny", [0.0, 1e-17])
def test_numerical_zeros_count_in_the_total_alone(tiny):
    values = torch.cat([torch.full((50,), tiny).double(), torch.tensor(draw(150)) + 0.1])
    edges, density = spectral_density(values)
    assert edges[0] >= 0.1
    assert (density * edges.diff()).sum().item() == pytest.approx(0.75)


def test_equal_eigenvalues_fill_one_bin_and_zeros_none():
    edges, density = spectral_density(torch.tensor([[2.0, 2.0], [0.0, 0.0]]), bins=4)
    torch.testing.assert_close(edges[0, [0, -1]], torch.tensor([2 / 1.1, 2.2]).double())
    assert (density[0] > 0).sum() == 1
    assert (density * edges.diff())[0].sum().item() == pytest.approx(1)
    assert edges[1].isnan().all()
    assert density[1].isnan().all()


def test_nothing_waits_for_the_device():
    values = torch.empty(2, 20, device="meta")
    assert spectral_density(values).density.device.type == "meta"
    assert effective_rank(values).device.type == "meta"


@pytest.mark.parametrize("function", [effective_rank, log_norm, spectral_density])
@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_rejects_shape(function, shape):
    with pytest.raises(ValueError, match=r"`eigenvalues` to be \(\.\.\., N\) with N >= 1, but got shape"):
        function(torch.zeros(shape))


def test_rejects_bins():
    with pytest.raises(ValueError, match="`bins` to be at least 1, but got 0"):
        spectral_density(torch.ones(2), bins=0)


def test_stable_rank_is_ratio_of_norms():
    matrices = np.random.RandomState(0).standard_normal((4, 9, 6))
    expected = np.linalg.norm(matrices, "fro", (1, 2)) ** 2 / np.linalg.norm(matrices, 2, (1, 2)) ** 2
    torch.testing.assert_close(stable_rank(esd(torch.tensor(matrices))), torch.tensor(expected), rtol=1e-12, atol=0)


def test_stable_rank_limits():
    assert stable_rank(torch.ones(7)).item() == 7
    assert stable_rank(torch.tensor([0.0, 0.0, 5.0])).item() == 1
    assert stable_rank(torch.zeros(3)).isnan()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_stable_rank_rejects_shape(shape):
    with pytest.raises(ValueError, match=r"`eigenvalues` to be \(\.\.\., N\) with N >= 1, but got shape"):
        stable_rank(torch.zeros(shape))
