"""Intervals and p-values on samples of known laws: their coverage and their distribution under the null."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from lightning_farms.functional import fit_hill, fit_ks, fit_peak
from lightning_farms.functional.power_law import PowerLawFit
from lightning_farms.functional.uncertainty import Interval, bootstrap_interval, goodness_of_fit

ALPHA, SAMPLES, COUNT = 2.5, 200, 150


def pareto(*shape, seed=0, alpha=ALPHA):
    return torch.tensor(stats.pareto(alpha - 1).rvs(shape, random_state=np.random.RandomState(seed)))


def whole_tail(eigenvalues):
    return fit_hill(eigenvalues, 1e9)


def paper_hill(eigenvalues):
    return fit_hill(eigenvalues, form="paper")


def body_and_tail(samples, count, seed=0, gap=0.1):
    """Half of each sample Pareto from 1 on, half uniform below ``gap`` but for one at 1."""
    body = np.random.RandomState(seed).uniform(0.1 * gap, gap, (samples, count // 2))
    body[:, 0] = 1.0
    return torch.cat([torch.tensor(body), pareto(samples, count - count // 2, seed=seed)], dim=-1)


def test_alpha_has_the_bias_of_its_law():
    """(alpha - 1) n / (n - 2): n - 1 exponential gaps make the sum of logarithms, the term of xmin being zero."""
    fit = whole_tail(pareto(SAMPLES, COUNT))
    expected = (ALPHA - 1) * COUNT / (COUNT - 2)
    assert abs((fit.alpha - 1).mean().item() - expected) < 3 * fit.alpha.std().item() / math.sqrt(SAMPLES)
    assert fit.alpha.std().item() == pytest.approx(fit.standard_error.mean().item(), rel=0.15)


def test_the_standard_error_and_the_bootstrap_interval_cover_alpha():
    samples = pareto(SAMPLES, COUNT)
    fit = whole_tail(samples)
    low, high = bootstrap_interval(samples, whole_tail)
    normal = (fit.alpha - ALPHA).abs() < 1.96 * fit.standard_error
    for covered in (normal, (low < ALPHA) & (high > ALPHA)):
        assert 0.89 <= covered.double().mean().item() <= 0.99
    torch.testing.assert_close((high - low).mean(), (3.92 * fit.standard_error).mean(), rtol=0.1, atol=0)
    half_low, half_high = bootstrap_interval(samples, whole_tail, level=0.5)
    assert 0.38 <= ((half_low < ALPHA) & (half_high > ALPHA)).double().mean().item() <= 0.62


def test_the_interval_is_that_of_scipy():
    samples = pareto(300)
    low, high = bootstrap_interval(samples, whole_tail, draws=10000)

    def alpha(values, axis):
        return 1 + values.shape[axis] / np.log(values / values.min(axis=axis, keepdims=True)).sum(axis=axis)

    theirs = stats.bootstrap(
        (samples.numpy(),), alpha, method="percentile", n_resamples=10000, rng=np.random.default_rng(0)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert low.item() == pytest.approx(theirs.low, abs=0.03 * width)
    assert high.item() == pytest.approx(theirs.high, abs=0.03 * width)


@pytest.mark.parametrize("fit", [fit_ks, lambda values: fit_peak(values, lower_bound="corrected")])
def test_the_interval_includes_the_choice_of_xmin(fit):
    """The scan looks for the best tail, which a fixed one does not pay for."""
    samples = pareto(20, 100)
    low, high = bootstrap_interval(samples, fit, draws=100)
    assert ((low <= high) & low.isfinite()).all()
    fixed = bootstrap_interval(samples, whole_tail, draws=100)
    assert (high - low).mean() > 1.3 * (fixed.high - fixed.low).mean()


@pytest.mark.parametrize("fit", [fit_hill, paper_hill])
@pytest.mark.parametrize("gap", [0.1, 0.9])
def test_p_values_of_fixed_rank_tails_are_uniform_under_the_null(fit, gap):
    draws, samples = 400, 300
    p_values = goodness_of_fit(body_and_tail(samples, 60, gap=gap), fit, draws=draws)
    for share in (0.1, 0.3, 0.5, 0.9):
        error = math.sqrt(share * (1 - share) * (1 / samples + 1 / draws))
        assert abs((p_values < share).double().mean().item() - share) < 3 * error


def test_p_values_come_from_samples_of_the_fitted_law_above_the_body():
    values = body_and_tail(1, 400)[0]
    seen = []

    def fit(eigenvalues):
        seen.append(eigenvalues)
        return fit_hill(eigenvalues)

    goodness_of_fit(values, fit, draws=20)
    fitted, body = fit_hill(values), values.sort().values[:200]
    drawn = torch.cat(seen[1:]).sort(dim=-1).values
    law = stats.pareto(fitted.alpha.item() - 1, scale=fitted.xmin.item())
    assert stats.kstest(drawn[:, 200:].flatten().numpy(), law.cdf).pvalue > 0.01
    assert torch.isin(drawn[:, :200], body).all()
    assert (drawn[:, :200] == body[3]).sum().item() == pytest.approx(20, abs=14)


def test_p_values_of_a_scan_seldom_reject_the_null():
    p_values = goodness_of_fit(body_and_tail(60, 40, seed=3), fit_ks, draws=60)
    assert (p_values < 0.1).double().mean().item() < 0.1 + 3 * math.sqrt(0.09 * (1 / 60 + 1 / 60))
    assert 0.35 < p_values.mean().item() < 0.75


@pytest.mark.parametrize(("fit", "law"), [(fit_hill, "uniform"), (whole_tail, "expon"), (whole_tail, "lognorm")])
def test_p_values_reject_what_is_not_a_power_law(fit, law):
    law = stats.lognorm(1.0) if law == "lognorm" else getattr(stats, law)(loc=1)
    samples = torch.tensor(law.rvs((20, 500), random_state=np.random.RandomState(0)))
    assert goodness_of_fit(samples, fit, draws=100).amax().item() < 0.03


def test_p_values_of_a_scan_reject_a_narrow_law():
    assert goodness_of_fit(torch.linspace(0.5, 1, 400), fit_ks, draws=50).item() < 0.1


@pytest.mark.parametrize("estimate", [bootstrap_interval, goodness_of_fit])
@pytest.mark.parametrize("fit", [fit_hill, fit_ks])
def test_results_follow_from_the_seed_and_the_spectrum_alone(estimate, fit):
    values = pareto(2, 3, 50)
    kept = values.clone()
    state = torch.random.get_rng_state()

    def numbers(eigenvalues, **options):
        result = estimate(eigenvalues, fit, draws=30, **options)
        return torch.stack(result) if isinstance(result, Interval) else result

    whole = numbers(values)
    assert whole.shape[-2:] == (2, 3)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(values, kept)
    torch.manual_seed(5)
    assert torch.equal(numbers(values), whole)
    assert not torch.equal(numbers(values, seed=1), whole)
    assert torch.equal(
        numbers(values[1, 2].flip(-1) if estimate is goodness_of_fit else values[1, 2]), whole[..., 1, 2]
    )
    repeated = values.repeat(250, 1, 1)  # 30 draws of it take three blocks of 2**20 elements
    assert torch.equal(numbers(repeated), whole.repeat(*[1] * (whole.ndim - 2), 250, 1))


def test_samples_of_the_fitted_law_have_the_same_bits_whatever_else_is_in_the_batch():
    values = pareto(7, 51)
    drawn = []

    def fit(eigenvalues):
        drawn[-1].append(eigenvalues)
        return fit_hill(eigenvalues)

    for batch in (values, *values):
        drawn.append([])
        goodness_of_fit(batch, fit, draws=20)
    (_, together), *alone = drawn
    for index, (_, samples) in enumerate(alone):
        assert torch.equal(samples, together[:, index])


def test_the_memory_of_the_refits_is_bounded():
    sizes = []

    def fit(eigenvalues):
        sizes.append(eigenvalues.numel())
        return fit_hill(eigenvalues)

    bootstrap_interval(pareto(300, 100), fit, draws=50)
    assert max(sizes) <= 2**20
    assert sum(sizes) == 51 * 30_000


def test_spectra_without_an_alpha_have_neither_interval_nor_p_value():
    values = torch.stack([pareto(40), torch.ones(40).double(), torch.cat([torch.zeros(30), pareto(10)])])
    assert bootstrap_interval(values, fit_hill).low.isnan().tolist() == [False, True, True]
    assert bootstrap_interval(values, fit_hill).high.isnan().tolist() == [False, True, True]
    assert goodness_of_fit(values, fit_hill).isnan().tolist() == [False, True, True]
    assert goodness_of_fit(values, fit_ks).isnan().tolist() == [False, True, False]


def test_refits_without_a_number_are_left_out():
    """Alpha is the draw's mean, not a number for those above 1: the interval is that of the others."""

    def fit(eigenvalues):
        alpha = eigenvalues.mean(-1)
        alpha = alpha.masked_fill(alpha > 1, torch.nan)
        return PowerLawFit(alpha, alpha, alpha, torch.full_like(alpha, 2, dtype=torch.int64))

    values = torch.tensor([0.5, 1.2, 1.2], dtype=torch.float64)
    low, high = bootstrap_interval(values, fit, draws=500, level=0.99)
    assert low.item() == pytest.approx(0.5)
    assert high.item() == pytest.approx((0.5 + 1.2 + 1.2) / 3)


def test_arguments_are_checked():
    values = pareto(20)
    for estimate in (bootstrap_interval, goodness_of_fit):
        with pytest.raises(ValueError, match="`draws` to be at least 1, but got 0"):
            estimate(values, fit_hill, draws=0)
        with pytest.raises(ValueError, match="`eigenvalues` to be"):
            estimate(values[:1], fit_hill)
    for level in (0.0, 1.0, math.nan):
        with pytest.raises(ValueError, match="`level` to be between 0 and 1, but got"):
            bootstrap_interval(values, fit_hill, level=level)
