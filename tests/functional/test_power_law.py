"""Fits against powerlaw, scipy, samples of a known law, and slow loops written from the docstrings."""

import math

import numpy as np
import powerlaw
import pytest
import torch
from scipy import stats

from lightning_farms.functional import PowerLawFit, esd, fit_hill, fit_ks, fit_peak, power_law


def spectrum(rows=60, columns=40, seed=0, spikes=True):
    random = np.random.RandomState(seed)
    matrix = random.standard_normal((rows, columns)) / np.sqrt(columns)
    if spikes:
        matrix += random.standard_normal((rows, 3)) * [2, 1, 0.5] @ random.standard_normal((3, columns)) / 3
    return esd(torch.tensor(matrix))


def spectra():
    return torch.stack([spectrum(seed=0), spectrum(seed=1), spectrum(seed=2, spikes=False), spectrum(seed=3) * 1e-6])


def loop_tail(eigenvalues, i):
    """Exponent and KS distance with lambda_{i+1} as xmin, ascending, counted from 1."""
    n = len(eigenvalues) - i
    xmin = eigenvalues[i]
    total = sum(math.log(value / xmin) for value in eigenvalues[i:])
    if total <= 0:
        return math.inf, math.inf
    alpha = 1 + n / total
    pairs = enumerate(eigenvalues[i:])
    return alpha, max(abs(1 - (value / xmin) ** (1 - alpha) - j / n) for j, value in pairs)


def loop_scan(eigenvalues, positions):
    best = (math.nan, math.nan, math.nan, 0)
    least = math.inf
    for i in positions:
        alpha, distance = loop_tail(eigenvalues, i)
        if 1 < alpha < math.inf and distance < least:
            least = distance
            best = (alpha, eigenvalues[i], distance, len(eigenvalues) - i)
    return best


def loop_ks(eigenvalues):
    return loop_scan(eigenvalues, range(len(eigenvalues) - 1))


def loop_peak(eigenvalues, lower_bound):
    counts, edges = np.histogram(np.log10(eigenvalues), bins=100)
    peak = 10 ** edges[counts.argmax()]
    lower = math.log10(0.95 * peak) if lower_bound == "published" else 0.95 * peak
    positions = [i for i in range(len(eigenvalues) - 1) if lower <= eigenvalues[i] <= 1.5 * peak]
    return loop_scan(eigenvalues, positions)


def assert_fits(fit, expected):
    expected = [torch.tensor(column, dtype=torch.float64) for column in zip(*expected, strict=True)]
    for got, column in zip(fit[:3], expected[:3], strict=True):
        torch.testing.assert_close(got, column, rtol=1e-9, atol=0, equal_nan=True)
    assert fit.tail_size.tolist() == expected[3].tolist()


@pytest.mark.parametrize("position", [1.1, 1.5, 2.0, 3.0, 10.0, 1e9])
def test_hill_is_powerlaw_with_fixed_xmin(position):
    eigenvalues = spectrum()
    below = int(40 / position)
    fit = fit_hill(eigenvalues, position)
    theirs = powerlaw.Fit(eigenvalues.numpy(), xmin=eigenvalues[below].item(), verbose=False)
    assert fit.alpha.item() == pytest.approx(theirs.power_law.alpha, rel=1e-9)
    assert fit.ks_distance.item() == pytest.approx(theirs.power_law.D, rel=1e-9)
    assert fit.xmin.item() == eigenvalues[below].item()
    assert fit.tail_size.item() == 40 - below


@pytest.mark.parametrize("seed", range(3))
def test_hill_and_its_distance_are_those_of_scipy(seed):
    eigenvalues = spectrum(seed=seed)
    fit = fit_hill(eigenvalues)
    tail = eigenvalues.numpy()[20:]
    shape, _, scale = stats.pareto.fit(tail, floc=0, fscale=tail[0])
    assert fit.alpha.item() == pytest.approx(1 + shape, rel=1e-9)
    distance = np.abs(stats.pareto.cdf(tail, shape, scale=scale) - np.arange(20) / 20).max()
    assert fit.ks_distance.item() == pytest.approx(distance, rel=1e-9)
    # the two-sided statistic also looks at the upper edge of each step
    two_sided = stats.kstest(tail, stats.pareto(shape, scale=scale).cdf).statistic
    assert fit.ks_distance.item() <= two_sided <= fit.ks_distance.item() + 1 / 20 + 1e-12


def test_hill_paper_form_is_its_formula():
    eigenvalues = np.sort(spectrum().numpy())
    k = 20
    logs = [math.log(eigenvalues[40 - i] / eigenvalues[40 - k - 1]) for i in range(1, k + 1)]
    fit = fit_hill(torch.tensor(eigenvalues), form="paper")
    assert fit.alpha.item() == pytest.approx(1 + k / sum(logs), rel=1e-12)
    assert fit.xmin.item() == eigenvalues[19]
    assert fit.tail_size.item() == k


def test_hill_paper_form_with_everything_in_the_tail_leaves_one_for_xmin():
    assert fit_hill(torch.tensor([1.0, 2.0, 4.0]), 1e9, form="paper").tail_size.item() == 2


@pytest.mark.parametrize("form", ["code", "paper"])
@pytest.mark.parametrize("alpha", [1.8, 2.5, 4.0])
@pytest.mark.parametrize("position", [2.0, 1e9])
def test_hill_finds_the_exponent_of_pareto_samples(alpha, position, form):
    n = 20000
    samples = stats.pareto(alpha - 1, scale=3.0).rvs(n, random_state=np.random.RandomState(5))
    fit = fit_hill(torch.tensor(samples), position, form=form)
    standard_error = (alpha - 1) / math.sqrt(fit.tail_size.item())
    assert abs(fit.alpha.item() - alpha) < 2.5 * standard_error
    assert fit.ks_distance.item() < 1.5 / math.sqrt(fit.tail_size.item())


@pytest.mark.parametrize("fit", [fit_hill, fit_ks, fit_peak])
def test_fits_do_not_depend_on_order_batch_or_precision_of_the_result(fit):
    values = spectra()
    before = values.clone()
    batched = fit(values.reshape(2, 2, -1).flip(-1))
    assert isinstance(batched, PowerLawFit)
    assert batched.alpha.dtype == torch.float64
    assert batched.alpha.shape == batched.tail_size.shape == (2, 2)
    for index in range(4):
        single = fit(values[index][torch.randperm(40, generator=torch.Generator().manual_seed(0))])
        for got, expected in zip(single, batched, strict=True):
            torch.testing.assert_close(got, expected.flatten()[index])
    torch.testing.assert_close(values, before, rtol=0, atol=0)


@pytest.mark.parametrize("fit", [fit_hill, fit_ks, lambda values: fit_peak(values, lower_bound="corrected")])
def test_fits_are_scale_free(fit):
    values = spectra()
    fitted, scaled = fit(values), fit(values * 1e5)
    torch.testing.assert_close(scaled.alpha, fitted.alpha)
    torch.testing.assert_close(scaled.xmin, fitted.xmin * 1e5)
    torch.testing.assert_close(scaled.ks_distance, fitted.ks_distance)


def test_ks_is_the_slow_loop():
    assert_fits(fit_ks(spectra()), [loop_ks(values.tolist()) for values in spectra()])


@pytest.mark.parametrize("elements", [1, 400, 161 * 7])
def test_ks_in_blocks_is_the_same(monkeypatch, elements):
    whole = fit_ks(spectra())
    monkeypatch.setattr(power_law, "_SCAN_ELEMENTS", elements)
    for got, expected in zip(fit_ks(spectra()), whole, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)


def test_ks_finds_where_a_spliced_law_starts():
    random = np.random.RandomState(0)
    body, tail = random.uniform(0.1, 1.0, 1000), stats.pareto(1.5, scale=1.0).rvs(1000, random_state=random)
    fit = fit_ks(torch.tensor(np.concatenate([body, tail])))
    assert fit.alpha.item() == pytest.approx(2.5, abs=0.15)
    assert fit.xmin.item() == pytest.approx(1.0, abs=0.15)


def test_ks_leaves_zeros_out():
    values = spectrum()
    padded = fit_ks(torch.cat([torch.zeros(15), values]))
    for got, expected in zip(padded, fit_ks(values), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize("lower_bound", ["published", "corrected"])
@pytest.mark.parametrize("scale", [1.0, 1e-3, 1e3])
def test_peak_is_the_slow_loop(lower_bound, scale):
    values = spectra() * scale
    fit = fit_peak(values, lower_bound=lower_bound)
    assert_fits(fit, [loop_peak(one.tolist(), lower_bound) for one in values])


def test_peak_candidates_end_at_one_and_a_half_times_the_peak():
    """Of 1, 1.49, 1.51, ... only what is within the bounds may be xmin, though the tail from 1.51 on fits best."""
    tail = 1.51 * (1 - np.arange(300) / 300) ** -1.0
    eigenvalues = torch.tensor(np.concatenate([np.full(400, 1.0), [1.49], tail]))
    assert fit_ks(eigenvalues).xmin.item() == pytest.approx(1.51)
    assert fit_peak(eigenvalues, lower_bound="corrected").xmin.item() == pytest.approx(1.49)


def test_peak_bounds_differ():
    values = spectra()
    published, corrected = fit_peak(values), fit_peak(values, lower_bound="corrected")
    assert not torch.equal(published.xmin, corrected.xmin)


def test_peak_leaves_zeros_out_of_the_histogram():
    values = spectrum()
    padded = fit_peak(torch.cat([torch.zeros(30), values]), lower_bound="corrected")
    torch.testing.assert_close(padded.xmin, fit_peak(values, lower_bound="corrected").xmin)


@pytest.mark.parametrize("fit", [fit_ks, fit_peak])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_scan_of_equal_eigenvalues_finds_nothing(fit, value):
    found = fit(torch.full((2, 12), value))
    assert found.alpha.isnan().all()
    assert found.xmin.isnan().all()
    assert found.ks_distance.isnan().all()
    assert found.tail_size.tolist() == [0, 0]


def test_hill_of_equal_tail_is_infinite_and_of_zero_xmin_not_a_number():
    assert fit_hill(torch.tensor([1.0, 2.0, 3.0, 3.0])).alpha.item() == math.inf
    assert fit_hill(torch.tensor([0.0, 0.0, 0.0, 3.0])).alpha.isnan()


@pytest.mark.parametrize("fit", [fit_hill, fit_ks, fit_peak])
@pytest.mark.parametrize("shape", [(), (1,), (4, 1), (0,)])
def test_fits_reject_too_few_eigenvalues(fit, shape):
    with pytest.raises(ValueError, match=r"`eigenvalues` to be \(\.\.\., N\) with N >= 2, but got shape"):
        fit(torch.ones(shape))


@pytest.mark.parametrize("position", [1.0, 0.0, -2.0, math.nan])
def test_hill_rejects_position(position):
    with pytest.raises(ValueError, match="`xmin_position` to be above 1, but got"):
        fit_hill(torch.ones(4), position)


def test_unknown_choices_are_rejected():
    with pytest.raises(ValueError, match=r"`form` to be one of .*'code', 'paper'.*, but got 'other'"):
        fit_hill(torch.ones(4), form="other")
    with pytest.raises(ValueError, match=r"`lower_bound` to be one of .*'published', 'corrected'.*, but got 'other'"):
        fit_peak(torch.ones(4), lower_bound="other")
