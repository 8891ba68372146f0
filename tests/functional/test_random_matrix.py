"""Marchenko-Pastur law and spikes against scipy's quadrature, an Airy determinant and samples of random matrices."""

import math

import numpy as np
import pytest
import torch
from scipy import integrate, special, stats

from lightning_farms.functional.random_matrix import (
    fit_marchenko_pastur,
    marchenko_pastur_cdf,
    marchenko_pastur_density,
    marchenko_pastur_edges,
    shuffle_entries,
    spike_threshold,
)

SIZES = [(50, 50), (100, 40), (40, 100), (9, 1), (1000, 3), (2000, 1999)]


def spectra(matrices):
    """Eigenvalues of each of many matrices: (..., min(m, n))."""
    matrices = torch.as_tensor(matrices)
    matrices = matrices if matrices.shape[-2] <= matrices.shape[-1] else matrices.mT
    return torch.linalg.eigvalsh(matrices @ matrices.mH).clamp(min=0)


def gaussian(*shape, seed=0, complex_entries=False):
    random = np.random.RandomState(seed)
    if complex_entries:
        return (random.standard_normal(shape) + 1j * random.standard_normal(shape)) / math.sqrt(2)
    return random.standard_normal(shape)


def with_spikes(strength, rank, *shape, seed=0):
    """Gaussian matrices plus `rank` orthogonal directions, `strength` times the smallest that shows (BBP)."""
    count, m, n = shape
    left, right = (np.linalg.qr(gaussian(count, size, rank, seed=seed + 1))[0] for size in (m, n))
    return gaussian(*shape, seed=seed) + strength * (m * n) ** 0.25 * left @ right.swapaxes(1, 2)


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_density_integrates_to_one_and_to_the_mean_square(m, n):
    lower, upper = marchenko_pastur_edges(m, n, 0.3)
    # x = lower + (upper - lower) sin^2 t removes the singularities of the integrand
    t = torch.linspace(0, math.pi / 2, 200_001, dtype=torch.float64)[1:-1]
    x = lower + (upper - lower) * t.sin().square()
    weight = marchenko_pastur_density(x, m, n, 0.3) * (upper - lower) * (2 * t).sin()
    assert np.trapezoid(weight, t) == pytest.approx(1, abs=1e-4)
    assert np.trapezoid(weight * x, t) == pytest.approx(0.3 * max(m, n), rel=1e-4)


@pytest.mark.parametrize(("m", "n"), SIZES)
def test_cdf_is_the_integral_of_the_density(m, n):
    lower, upper = (edge.item() for edge in marchenko_pastur_edges(m, n, 0.3))
    middle, half = (lower + upper) / 2, (upper - lower) / 2
    angles = np.array([0.05, 0.7, 1.5, 2.2, 3.0, 3.13])
    x = middle + half * np.cos(angles)

    def integrand(angle):
        point = middle + half * math.cos(angle)
        return half * math.sin(angle) * marchenko_pastur_density(torch.tensor(point, dtype=torch.float64), m, n, 0.3)

    below = [integrate.quad(integrand, angle, math.pi)[0] for angle in angles]
    got = marchenko_pastur_cdf(torch.from_numpy(x), m, n, 0.3)
    np.testing.assert_allclose(got, below, atol=2e-8)


def test_density_is_the_textbooks():
    x, q = np.linspace(0.2, 2.9, 7), 0.4
    a, b = (1 - math.sqrt(q)) ** 2, (1 + math.sqrt(q)) ** 2
    textbook = np.where((x > a) & (x < b), np.sqrt(np.maximum((b - x) * (x - a), 0)) / (2 * math.pi * q * x), 0)
    # W / sqrt(250) has entries of variance 1 / 250
    np.testing.assert_allclose(marchenko_pastur_density(torch.tensor(x), 250, 100, 1 / 250), textbook, rtol=1e-12)


@pytest.mark.parametrize(("m", "n"), [(4, 4), (8, 4), (4, 8)])
def test_outside_and_at_the_edges(m, n):
    lower, upper = marchenko_pastur_edges(m, n, 2.0)
    x = torch.stack([lower - 1, lower, upper, upper + 1])
    at_lower = math.inf if m == n else 0.0
    assert marchenko_pastur_density(x, m, n, 2.0).tolist() == [0.0, at_lower, 0.0, 0.0]
    torch.testing.assert_close(marchenko_pastur_cdf(x, m, n, 2.0), torch.tensor([0.0, 0.0, 1.0, 1.0]).double())
    unknown = torch.tensor([math.nan])
    assert marchenko_pastur_density(unknown, m, n, 2.0).isnan()
    assert marchenko_pastur_cdf(unknown, m, n, 2.0).isnan()


def test_one_variance_a_spectrum():
    x = torch.linspace(0, 30, 11).double().expand(3, 11)
    variances = torch.tensor([0.5, 1.0, 2.0], dtype=torch.float32)
    for function in (marchenko_pastur_density, marchenko_pastur_cdf):
        rows = [function(x[0], 6, 3, variance) for variance in variances.tolist()]
        torch.testing.assert_close(function(x, 6, 3, variances[:, None]), torch.stack(rows))
    torch.testing.assert_close(
        spike_threshold(6, 3, variances), spike_threshold(6, 3, 1.0) * variances.double(), rtol=1e-15, atol=0
    )


@pytest.mark.parametrize(("m", "n"), [(300, 300), (300, 120), (120, 300)])
def test_gaussian_matrices_follow_the_law(m, n):
    """The eigenvalues repel each other: as many independent samples would be twice as far from the law, or more."""
    values = spectra(0.1 * gaussian(4, m, n)).flatten().numpy()

    def distance(variance):
        return stats.kstest(values, lambda x: marchenko_pastur_cdf(torch.tensor(x), m, n, variance).numpy()).statistic

    assert distance(0.01) < 0.02
    fit = fit_marchenko_pastur(torch.from_numpy(values).reshape(4, -1), m, n)
    assert fit.ks_distance.item() == pytest.approx(distance(fit.variance), rel=1e-9)


def tracy_widom(index, s):
    """Distribution function by the Fredholm determinants of the Airy kernel, with 60 Gauss-Legendre points."""
    nodes, weights = np.polynomial.legendre.leggauss(60)
    x, weights = s + 8 * (nodes + 1), 8 * weights
    if index == 1:
        kernel = special.airy((x[:, None] + x) / 2)[0] / 2
    else:
        value, slope = special.airy(x)[:2]
        difference = x[:, None] - x + np.eye(60)
        kernel = (np.outer(value, slope) - np.outer(slope, value)) / difference
        np.fill_diagonal(kernel, slope**2 - x * value**2)
    root = np.sqrt(weights)
    return np.linalg.det(np.eye(60) - root[:, None] * kernel * root)


@pytest.mark.parametrize(("complex_entries", "shift"), [(False, 0.5), (True, 0.0)])
def test_threshold_is_the_tracy_widom_quantile(complex_entries, shift):
    a, b = math.sqrt(70 - shift), math.sqrt(30 - shift)
    scale = (a + b) * (1 / a + 1 / b) ** (1 / 3)
    threshold = spike_threshold(70, 30, 1.0, complex_entries=complex_entries).item()
    quantile = (threshold - (a + b) ** 2) / scale
    assert tracy_widom(2 if complex_entries else 1, quantile) == pytest.approx(0.99, abs=2e-6)


@pytest.mark.parametrize("complex_entries", [False, True])
@pytest.mark.parametrize(("m", "n"), [(20, 20), (60, 25), (12, 90)])
def test_one_random_matrix_in_a_hundred_exceeds_the_threshold(m, n, complex_entries):
    draws = 3000
    values = spectra(gaussian(draws, m, n, complex_entries=complex_entries))
    beyond = values.amax(-1) > spike_threshold(m, n, 1.0, complex_entries=complex_entries)
    low, high = stats.binom(draws, 0.01).interval(0.9999)
    assert low <= beyond.sum() <= high


@pytest.mark.parametrize("complex_entries", [False, True])
@pytest.mark.parametrize(("m", "n"), [(80, 80), (150, 50), (40, 160)])
def test_fit_of_gaussian_matrices(m, n, complex_entries):
    values = spectra(0.05 * gaussian(60, m, n, complex_entries=complex_entries))
    fits = fit_marchenko_pastur(values.unsqueeze(-2), m, n, complex_entries=complex_entries)
    assert fits.variance.shape == (60,)
    torch.testing.assert_close(fits.variance.mean(), torch.tensor(0.0025).double(), rtol=0.005, atol=0)
    assert ((fits.variance / 0.0025 - 1).abs() < 3 * math.sqrt(2 / (m * n))).double().mean() > 0.95
    assert (fits.spikes == 0).double().mean() >= 0.95
    together = fit_marchenko_pastur(values, m, n, complex_entries=complex_entries)
    torch.testing.assert_close(together.variance, torch.tensor(0.0025).double(), rtol=0.005, atol=0)
    assert together.spikes <= 0.05
    assert 0.95 < together.soft_rank < 1.1
    assert together.ks_distance < 0.02


@pytest.mark.parametrize(("m", "n"), [(100, 100), (200, 80), (80, 200)])
def test_planted_spikes_are_counted_and_leave_the_bulk_alone(m, n):
    values = spectra(with_spikes(4.0, 4, 30, m, n))
    fits = fit_marchenko_pastur(values.unsqueeze(-2), m, n)
    assert (fits.spikes == 4).double().mean() >= 0.95
    torch.testing.assert_close(fits.variance.mean(), torch.tensor(1.0).double(), rtol=0.01, atol=0)
    torch.testing.assert_close(fits.soft_rank, fits.upper_edge / values.amax(-1))
    assert (fits.soft_rank < 0.4).all()


def test_many_strong_spikes_do_not_drag_the_bulk():
    values = spectra(with_spikes(20.0, 40, 4, 200, 150))
    fit = fit_marchenko_pastur(values, 200, 150)
    assert fit.spikes == 40
    assert fit.variance.item() == pytest.approx(1, rel=0.02)


@pytest.mark.parametrize(("m", "n"), [(100, 100), (200, 80)])
def test_spikes_below_the_transition_are_not_counted(m, n):
    fits = fit_marchenko_pastur(spectra(with_spikes(0.5, 4, 40, m, n)).unsqueeze(-2), m, n)
    assert (fits.spikes == 0).double().mean() >= 0.9


def test_heavy_tailed_entries_do_not_blow_up():
    entries = stats.t(3).rvs((10, 150, 100), random_state=0)
    fits = fit_marchenko_pastur(spectra(entries).unsqueeze(-2), 150, 100)
    assert ((fits.variance > 2) & (fits.variance < 3.2)).all()  # the entries' own is 3
    assert (fits.soft_rank < 1).all()


def test_edges_of_the_fit_are_those_of_its_variance():
    fit = fit_marchenko_pastur(spectra(gaussian(3, 2, 30, 20)), 20, 30)
    lower, upper = marchenko_pastur_edges(20, 30, fit.variance)
    torch.testing.assert_close((fit.lower_edge, fit.upper_edge), (lower, upper))
    torch.testing.assert_close(fit.spike_threshold, spike_threshold(20, 30, fit.variance))


def test_batches_are_independent_and_order_does_not_matter():
    values = spectra(gaussian(3, 4, 30, 20))
    fits = fit_marchenko_pastur(values.float(), 30, 20)
    alone = [fit_marchenko_pastur(group.flip(-1), 30, 20) for group in values.float()]
    for got, *expected in zip(fits, *alone, strict=True):
        assert got.dtype == torch.float64
        torch.testing.assert_close(got, torch.stack(expected), rtol=1e-12, atol=1e-14)


def test_scale_of_the_weights():
    values = spectra(with_spikes(4.0, 2, 2, 40, 30))
    one, other = fit_marchenko_pastur(values, 40, 30), fit_marchenko_pastur(1e-12 * values, 40, 30)
    units = (1e-12, 1e-12, 1e-12, 1e-12, 1, 1, 1)
    for got, expected, unit in zip(other, one, units, strict=True):
        torch.testing.assert_close(got, unit * expected, rtol=1e-9, atol=1e-20)


@pytest.mark.parametrize(
    "values",
    [
        torch.zeros(2, 6),
        torch.tensor([[0.0] * 4 + [1.0, 2.0]] * 2),
        torch.tensor([[1e-14] * 4 + [1.0, 2.0]] * 2),
        torch.tensor([[1.0] * 5 + [math.nan]] * 2),
        torch.tensor([[1.0] * 5 + [math.inf]] * 2),
    ],
)
def test_no_law_fits(values):
    for got in fit_marchenko_pastur(values, 6, 9):
        assert got.isnan()


def test_equal_eigenvalues_and_a_matrix_of_zeros_among_others_give_numbers():
    equal = fit_marchenko_pastur(torch.ones(2, 6), 6, 9)
    assert (equal.variance.item(), equal.spikes.item()) == (pytest.approx(1 / 9), 0)
    dead = spectra(gaussian(4, 30, 20))
    dead[0] = 0
    for got in fit_marchenko_pastur(dead, 30, 20):
        assert got.isfinite()


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (9, 1), (2, 2)])
def test_smallest_matrices(size):
    for got in fit_marchenko_pastur(spectra(gaussian(5, *size)), *size):
        assert got.isfinite()


def test_nothing_waits_for_the_device():
    """On the meta device there are no values: reading one raises."""
    fit = fit_marchenko_pastur(torch.empty(2, 5, 20, device="meta"), 20, 30)
    assert {part.device.type for part in fit} == {"meta"}
    assert {part.shape for part in fit} == {torch.Size([2])}


@pytest.mark.parametrize("shape", [(20,), (3, 19), (0, 20), (20, 3)])
def test_fit_rejects_shape(shape):
    with pytest.raises(ValueError, match=r"`eigenvalues` to be \(\.\.\., P, 20\) for 30 x 20 matrices, but got shape"):
        fit_marchenko_pastur(torch.ones(shape), 30, 20)


def test_wrong_sizes_and_variances():
    with pytest.raises(ValueError, match="`rows` to be at least 1, but got 0"):
        marchenko_pastur_edges(0, 3, 1.0)
    with pytest.raises(ValueError, match="`columns` to be at least 1, but got -1"):
        spike_threshold(3, -1, 1.0)
    for variance in (0.0, -1.0, math.nan):
        with pytest.raises(ValueError, match=f"`variance` to be positive, but got {variance}"):
            marchenko_pastur_cdf(torch.ones(2), 3, 3, variance)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_shuffled_entries_are_the_same_entries(dtype):
    matrices = torch.from_numpy(gaussian(3, 8, 5, complex_entries=dtype.is_complex)).to(dtype)
    before = matrices.clone()
    shuffled = shuffle_entries(matrices.mT, seed=7)
    assert shuffled.shape == (3, 5, 8)
    assert shuffled.dtype == dtype
    torch.testing.assert_close(matrices, before, rtol=0, atol=0)
    as_numbers = [np.sort_complex(part.to(torch.complex128).flatten().numpy()) for part in (matrices, shuffled)]
    np.testing.assert_array_equal(*as_numbers)
    assert (shuffled != matrices.mT).double().mean() > 0.9
    moved = torch.isin(shuffled[0].abs(), matrices[0].abs()).double().mean()
    assert moved < 0.7  # entries change places between matrices too


def test_shuffling_is_reproducible_and_leaves_the_global_generator_alone():
    matrices = torch.arange(60.0).reshape(3, 4, 5)
    state = torch.get_rng_state()
    first = shuffle_entries(matrices, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(5)
    assert torch.equal(first, shuffle_entries(matrices, seed=1))
    assert not torch.equal(first, shuffle_entries(matrices, seed=2))
    with torch.device("meta"):  # as under a default device other than the CPU
        assert torch.equal(first, shuffle_entries(matrices, seed=1))


def test_shuffling_removes_the_spikes():
    matrices = torch.from_numpy(with_spikes(6.0, 3, 2, 120, 80))
    before = fit_marchenko_pastur(spectra(matrices), 120, 80)
    after = fit_marchenko_pastur(spectra(shuffle_entries(matrices, seed=0)), 120, 80)
    assert (before.spikes.item(), after.spikes.item()) == (3, 0)
    assert after.ks_distance < 0.03 < before.ks_distance
    assert after.variance.item() == pytest.approx(matrices.square().mean().item(), rel=0.01)
