"""Fits against powerlaw, scipy, samples of a known law, and slow loops written from the docstrings."""

import math

import numpy as np
import powerlaw
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from lightning_farms.functional import PowerLawFit, esd, fit_hill, fit_ks, fit_peak


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


def loop_distinct(eigenvalues, i):
    """As loop_tail, with the distribution functions compared at distinct values."""
    alpha, distance = loop_tail(eigenvalues, i)
    if alpha < math.inf:
        tail = list(eigenvalues[i:])
        values = sorted(set(tail))
        pairs = [((value / tail[0]) ** (1 - alpha), sum(other < value for other in tail)) for value in values]
        distance = max(abs(1 - power - below / len(tail)) for power, below in pairs)
    return alpha, distance


def loop_scan(eigenvalues, positions):
    best = (math.nan, math.nan, math.nan, 0)
    least = math.inf
    for i in positions:
        if i and eigenvalues[i] == eigenvalues[i - 1]:
            continue
        alpha, distance = loop_distinct(eigenvalues, i)
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


def numpy_ks(eigenvalues):
    """As loop_ks, one candidate at a time, for longer spectra with zeros."""
    ordered = np.sort(eigenvalues)
    count = len(ordered)
    best = (math.nan, math.nan, math.nan, 0)
    least = math.inf
    for i in range(np.count_nonzero(ordered <= 0), count - 1):
        logs = np.log(ordered[i:] / ordered[i])
        if logs.any() and (i == 0 or ordered[i] > ordered[i - 1]):
            exponent = (count - i) / logs.sum()
            below = np.searchsorted(ordered[i:], ordered[i:])
            distance = np.abs(1 - np.exp(-exponent * logs) - below / (count - i)).max()
            if distance < least:
                least = distance
                best = (1 + exponent, ordered[i], distance, count - i)
    return best


def gaussian(rows, columns, seed=0):
    matrix = np.random.RandomState(seed).standard_normal((rows, columns))
    return np.linalg.eigvalsh(matrix @ matrix.T).clip(0)


def hard_spectra():
    """Spectra (count,) by name, of which each could lead a scan that does not look at everything astray."""
    random = np.random.RandomState(1)
    pareto = stats.pareto(1.5).rvs(1500, random_state=random)
    return {
        "pareto": pareto,
        "gaussian": gaussian(400, 500),
        "square": gaussian(300, 300),
        "rank deficient": np.concatenate([np.zeros(200), gaussian(100, 300)]),
        "rounding": np.concatenate([1e-17 * random.random_sample(300), pareto[:300]]),
        "ties": random.randint(1, 40, 1000).astype(float),
        "repeated": np.repeat(gaussian(100, 150), 5),
        "narrow tie": np.concatenate([pareto, np.full(12, 3.0)]),
        "range": 10 ** random.uniform(-150, 150, 700),
        "small": 1e-30 * pareto,
        "geometric": 1.01 ** np.arange(600),
        "lognormal": random.lognormal(0, 1, 800),
        "spliced": np.concatenate([random.uniform(0.1, 1, 500), pareto[:500]]),
    }


def assert_fits(fit, expected):
    expected = [torch.tensor(column, dtype=torch.float64) for column in zip(*expected, strict=True)]
    for got, column in zip(fit[:3], expected[:3], strict=True):
        torch.testing.assert_close(got, column, rtol=1e-9, atol=0, equal_nan=True)
    assert fit.tail_size.tolist() == expected[3].tolist()


@pytest.mark.filterwarnings("ignore:Standard error for the MLE:DeprecationWarning")  # of powerlaw, by itself
@pytest.mark.parametrize("digits", [1, 2])
@pytest.mark.parametrize("seed", [3, 4])
def test_ks_of_tied_values_is_powerlaw(digits, seed):
    values = np.round((1 - np.random.default_rng(seed).random(400)) ** (-1 / 1.5), digits)
    theirs = powerlaw.Fit(values, verbose=False)
    fit = fit_ks(torch.tensor(values))
    assert fit.xmin.item() == theirs.xmin
    assert fit.alpha.item() == pytest.approx(theirs.power_law.alpha, rel=1e-9)
    assert fit.ks_distance.item() == pytest.approx(theirs.power_law.D, rel=1e-9)
    assert fit.tail_size.item() == (values >= theirs.xmin).sum() > 60


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


@pytest.mark.parametrize("position", [1.5, 2.0, 4.0])
def test_hill_paper_form_is_powerlaw_and_scipy_above_an_xmin_outside_the_tail(position):
    eigenvalues = spectrum()
    below = int(40 / position)
    xmin, tail = eigenvalues[below - 1].item(), eigenvalues[below:].numpy()
    fit = fit_hill(eigenvalues, position, form="paper")
    theirs = powerlaw.Fit(tail, xmin=xmin, verbose=False).power_law
    assert fit.alpha.item() == pytest.approx(1 + stats.pareto.fit(tail, floc=0, fscale=xmin)[0], rel=1e-9)
    assert fit.alpha.item() == pytest.approx(theirs.alpha, rel=1e-9)
    assert fit.ks_distance.item() == pytest.approx(theirs.D, rel=1e-9)
    assert fit.standard_error.item() == pytest.approx(theirs.standard_err, rel=1e-9)


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


def test_ks_of_a_batch_that_is_scanned_in_blocks_is_that_of_each():
    """A block holds 2**15 elements: those of 2048 candidates in the first pass."""
    batch = torch.cat([spectra() * 1.01**i for i in range(60)])
    for values, *got in zip(batch, *fit_ks(batch), strict=True):
        for ours, expected in zip(got, fit_ks(values), strict=True):
            torch.testing.assert_close(ours, expected, rtol=0, atol=0)


def test_ks_of_a_spectrum_longer_than_a_block_is_the_best_of_all_candidates():
    eigenvalues = np.sort(stats.pareto(1.5).rvs(40_000, random_state=np.random.RandomState(0)))
    fit = fit_ks(torch.tensor(eigenvalues))
    start = len(eigenvalues) - fit.tail_size.item()

    def tail_fit(i):
        logs, size = np.log(eigenvalues[i:] / eigenvalues[i]), len(eigenvalues) - i
        exponent = size / logs.sum()
        return 1 + exponent, np.abs(1 - np.exp(-exponent * logs) - np.arange(size) / size).max()

    assert (fit.alpha.item(), fit.ks_distance.item()) == pytest.approx(tail_fit(start), rel=1e-9)
    others = {*range(0, len(eigenvalues) - 1, 97), *range(max(start - 50, 0), start + 50)} - {start}
    assert fit.ks_distance.item() < min(tail_fit(i)[1] for i in others)


@pytest.mark.parametrize(("name", "eigenvalues"), hard_spectra().items())
def test_ks_of_long_spectra_is_that_of_every_candidate(name, eigenvalues):
    assert_fits(fit_ks(torch.tensor(eigenvalues)[None]), [numpy_ks(eigenvalues)])


@pytest.mark.parametrize("count", [2, 3, 4, 15, 16, 17, 64, 65, 257])
def test_ks_of_a_batch_is_that_of_every_candidate(count):
    random = np.random.RandomState(count)
    batch = np.stack([random.pareto(2, count) + 1, random.random_sample(count), random.randint(0, 9, count) + 0.0])
    assert_fits(fit_ks(torch.tensor(batch)), [numpy_ks(eigenvalues) for eigenvalues in batch])


@pytest.mark.parametrize("count", [16, 17, 63, 64, 65, 200, 256, 257])
def test_ks_of_hard_spectra_in_any_number_of_passes_is_that_of_every_candidate(count):
    """Passes look at 16, 64, 256, ... points of a tail."""
    ends = [part for values in hard_spectra().values() for part in (values[:count], values[-count:])]
    assert_fits(fit_ks(torch.tensor(np.stack(ends))), map(numpy_ks, ends))


def test_ks_spectra_without_a_fit_leave_the_others_alone():
    good = spectrum()
    bad = [torch.zeros(40), torch.full((40,), 0.3), good.clone(), good.clone(), torch.cat([torch.zeros(39), good[-1:]])]
    bad[2][7], bad[3][3] = math.nan, math.inf
    fit = fit_ks(torch.stack([*bad, good]))
    assert fit.alpha[:-1].isnan().all()
    assert fit.tail_size[:-1].tolist() == [0] * 5
    for got, expected in zip(fit, fit_ks(good), strict=True):
        torch.testing.assert_close(got[-1], expected, rtol=0, atol=0)


@pytest.mark.filterwarnings("ignore:Standard error for the MLE:DeprecationWarning")  # powerlaw's, from its own scan
@pytest.mark.parametrize("alpha", [1.4, 1.8, 2.2])  # its scan looks for alpha up to 3
def test_ks_is_the_scan_of_powerlaw(alpha):
    random = np.random.RandomState(0)
    tail = stats.pareto(alpha - 1).rvs(200, random_state=random)
    eigenvalues = np.concatenate([random.uniform(0, 1, 50), tail])
    theirs = powerlaw.Fit(eigenvalues, verbose=False)
    fit = fit_ks(torch.tensor(eigenvalues))
    assert fit.xmin.item() == theirs.xmin
    assert fit.alpha.item() == pytest.approx(theirs.power_law.alpha, rel=1e-9)
    assert fit.ks_distance.item() == pytest.approx(theirs.power_law.D, rel=1e-9)
    assert fit.standard_error.item() == pytest.approx(theirs.power_law.standard_err, rel=1e-9)


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
    for form in ("code", "paper"):
        fit = fit_hill(torch.tensor([[0.0, 0.0, 0.0, 3.0], [1.0, 2.0, 3.0, 4.0]]), form=form)
        assert fit.alpha.isnan().tolist() == fit.ks_distance.isnan().tolist() == [True, False]
    assert fit_hill(torch.tensor([0.0, 0.0, 2.0, 3.0]), form="paper").alpha.isnan()


def test_standard_error_is_not_a_number_without_a_finite_alpha():
    fit = fit_hill(torch.tensor([[1.0, 2.0, 3.0, 3.0], [0.0, 0.0, 0.0, 3.0], [1.0, 1.0, 1.0, math.e]]))
    assert fit.standard_error[:2].isnan().all()
    assert fit.standard_error[2].item() == pytest.approx(2 / math.sqrt(2))
    assert fit_ks(torch.ones(4)).standard_error.isnan()


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


ALL_FITS = {
    "hill": fit_hill,
    "hill of the paper": lambda values: fit_hill(values, form="paper"),
    "ks": fit_ks,
    "peak": fit_peak,
    "corrected peak": lambda values: fit_peak(values, lower_bound="corrected"),
}
ANY_SPECTRUM = st.builds(
    lambda seed, count, power, zeros, ties: np.concatenate(
        [np.zeros(zeros), np.repeat(np.random.RandomState(seed).random_sample(count) ** power, ties)]
    ),
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(2, 60),
    power=st.sampled_from([-2.0, -0.5, 1.0, 8.0]),
    zeros=st.integers(0, 5),
    ties=st.integers(1, 3),
)
QUICK = settings(max_examples=40, deadline=None, database=None)


@QUICK
@given(eigenvalues=ANY_SPECTRUM)
def test_ks_of_any_spectrum_is_that_of_every_candidate(eigenvalues):
    assert_fits(fit_ks(torch.tensor(eigenvalues)[None]), [numpy_ks(eigenvalues)])


@pytest.mark.parametrize("name", sorted(ALL_FITS))
@QUICK
@given(eigenvalues=ANY_SPECTRUM, seed=st.integers(0, 1000))
def test_no_fit_depends_on_the_order(name, eigenvalues, seed):
    shuffled = np.random.RandomState(seed).permutation(eigenvalues)
    for got, expected in zip(
        ALL_FITS[name](torch.tensor(shuffled)), ALL_FITS[name](torch.tensor(eigenvalues)), strict=True
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", sorted(set(ALL_FITS) - {"peak"}))  # the published lower bound has a scale
@QUICK
@given(eigenvalues=ANY_SPECTRUM, factor=st.floats(1e-9, 1e9))
def test_fits_of_any_spectrum_are_scale_free(name, eigenvalues, factor):
    fit, scaled = ALL_FITS[name](torch.tensor(eigenvalues)), ALL_FITS[name](torch.tensor(eigenvalues * factor))
    expected = PowerLawFit(fit.alpha, fit.xmin * factor, fit.ks_distance, fit.tail_size)
    for got, wanted in zip(scaled, expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-7, atol=0, equal_nan=True)
