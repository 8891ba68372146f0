"""Likelihood ratios against powerlaw, scipy's optimiser, and laws whose answer is known."""

import numpy as np
import powerlaw
import pytest
import torch
from scipy import optimize, special, stats

from lightning_farms.functional import compare_distributions

LAWS = {
    "power law": lambda rng, n: (1 - rng.random(n)) ** (-1 / 1.5),
    "heavy power law": lambda rng, n: (1 - rng.random(n)) ** (-1 / 0.8),
    "exponential": lambda rng, n: 1 + rng.exponential(1.5, n),
    "lognormal": lambda rng, n: np.exp(np.abs(rng.normal(0, 0.8, n))),
    "peaked lognormal": lambda rng, n: 1 + np.exp(rng.normal(1.3, 0.3, n)),
    "random matrix": lambda rng, n: np.maximum(
        np.linalg.svd(rng.normal(size=(2 * n, 2 * n)), compute_uv=False) ** 2, 1
    ),
}


def sample(law, size, seed=0):
    return LAWS[law](np.random.default_rng(seed), size)


@pytest.mark.filterwarnings("ignore")  # powerlaw's, from its own optimiser
@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("size", [40, 150])
def test_ratios_and_p_values_are_those_of_powerlaw(law, size):
    values = sample(law, size)
    theirs = powerlaw.Fit(values, xmin=1.0, verbose=False, parameter_ranges={"alpha": [0, 30]})
    ours = compare_distributions(torch.from_numpy(values), torch.tensor(1.0))
    for name, each in ours._asdict().items():
        total, p_value = theirs.distribution_compare("power_law", name)
        assert each.total.item() == pytest.approx(total, abs=2e-3)  # their optimiser comes no nearer
        if each.normalized != 0:  # 0: the lognormal that is a power law
            ratio, _ = theirs.distribution_compare("power_law", name, normalized_ratio=True)
            assert each.normalized.item() == pytest.approx(ratio, rel=2e-2)
            assert each.p_value.item() == pytest.approx(p_value, rel=2e-2, abs=1e-9)


def lognormal_likelihood(parameters, logs):
    location, scale = parameters[0], np.exp(parameters[1])
    return stats.norm.logpdf(logs, location, scale).sum() - len(logs) * stats.norm.logsf(0, location, scale)


def truncated_likelihood(parameters, logs):
    alpha, rate = parameters[0], np.exp(parameters[1])
    from mpmath import gammainc

    normaliser = float(gammainc(1 - alpha, rate)) * rate ** (alpha - 1)
    return (-(alpha - 1) * logs - rate * np.exp(logs)).sum() - len(logs) * np.log(normaliser)


@pytest.mark.parametrize(
    ("law", "name", "likelihood", "start"),
    [
        ("lognormal", "lognormal", lognormal_likelihood, (0.3, 0.0)),
        ("peaked lognormal", "lognormal", lognormal_likelihood, (1.0, 0.0)),
        ("random matrix", "lognormal", lognormal_likelihood, (3.0, 0.0)),
        ("heavy power law", "truncated_power_law", truncated_likelihood, (1.8, -5.0)),
        ("lognormal", "truncated_power_law", truncated_likelihood, (1.5, -1.0)),
    ],
)
def test_fits_are_the_optimum(law, name, likelihood, start):
    logs = np.log(sample(law, 60))
    found = optimize.minimize(
        lambda p: -likelihood(p, logs), start, method="Nelder-Mead", options={"xatol": 1e-9, "fatol": 1e-12}
    )
    power = -len(logs) * np.log(logs.mean()) - len(logs)
    ratio = getattr(compare_distributions(torch.from_numpy(np.exp(logs)), torch.tensor(1.0)), name)
    assert ratio.total.item() == pytest.approx(power + found.fun, abs=1e-6)


def test_p_values_are_those_of_the_normal_and_the_chi_squared_law():
    ours = compare_distributions(torch.from_numpy(sample("exponential", 100)), torch.tensor(1.0))
    vuong = special.erfc(abs(ours.lognormal.normalized.item()) / 2**0.5)
    assert ours.lognormal.p_value.item() == pytest.approx(vuong, rel=1e-9)
    nested = stats.chi2.sf(-2 * ours.truncated_power_law.total.item(), 1)
    assert ours.truncated_power_law.p_value.item() == pytest.approx(nested, rel=1e-9)


def test_a_law_that_contains_the_power_law_is_never_worse():
    for law in LAWS:
        for seed in range(5):
            ours = compare_distributions(torch.from_numpy(sample(law, 40, seed)), torch.tensor(1.0))
            assert ours.truncated_power_law.total <= 1e-9
            assert ours.truncated_power_law.total <= ours.exponential.total + 1e-9  # alpha = 0


def test_of_many_samples_the_true_law_is_told():
    power = compare_distributions(torch.from_numpy(sample("power law", 20_000)), torch.tensor(1.0))
    assert power.exponential.normalized > 4
    assert power.exponential.p_value < 1e-4
    assert power.lognormal.p_value > 0.1
    assert power.truncated_power_law.p_value > 0.05
    exponential = compare_distributions(torch.from_numpy(sample("exponential", 20_000)), torch.tensor(1.0))
    assert max(each.normalized for each in exponential) < -5


def test_only_the_tail_counts_whatever_the_order_and_unit():
    tail = torch.from_numpy(sample("lognormal", 80))
    spectrum = torch.cat([torch.linspace(0, 0.99, 30), tail, torch.zeros(3)])[torch.randperm(113)]
    for ours, alone in zip(
        compare_distributions(7e5 * spectrum, torch.tensor(7e5)),
        compare_distributions(tail, torch.tensor(1.0)),
        strict=True,
    ):
        torch.testing.assert_close(ours.normalized, alone.normalized, rtol=1e-5, atol=1e-7)


def test_a_batch_is_its_spectra_one_by_one():
    spectra = torch.from_numpy(
        np.stack([[sample(law, 50, seed) for law in LAWS if law != "random matrix"] for seed in (1, 2)])
    )
    together = compare_distributions(spectra, torch.ones(2, 5))
    for i, j in np.ndindex(2, 5):
        for each, alone in zip(together, compare_distributions(spectra[i, j], torch.tensor(1.0)), strict=True):
            torch.testing.assert_close(each.total[i, j], alone.total, rtol=1e-7, atol=1e-8)


def test_tails_together_are_as_independent_ones():
    spectra = torch.from_numpy(np.stack([sample("exponential", 60, seed) for seed in range(3)]))
    ratio = compare_distributions(spectra, torch.ones(3)).truncated_power_law
    chosen = ratio.summed(torch.tensor([True, False, True]))
    assert chosen.total == ratio.total[0] + ratio.total[2]
    assert chosen.p_value.item() == pytest.approx(stats.chi2.sf(-2 * chosen.total.item(), 2), rel=1e-9)
    assert chosen.spread.item() == pytest.approx((ratio.spread[[0, 2]] ** 2).sum().sqrt().item())


@pytest.mark.parametrize(
    ("spectrum", "xmin"),
    [([1.0, 2.0], 1.0), ([3.0, 3.0, 3.0, 3.0], 3.0), ([0.0, 1.0, 2.0, 3.0], 0.0), ([1.0, 2.0, 3.0, 4.0], float("nan"))],
)
def test_a_tail_that_tells_nothing_is_nan(spectrum, xmin):
    for each in compare_distributions(torch.tensor(spectrum), torch.tensor(xmin)):
        assert each.normalized.isnan()
        assert each.p_value.isnan()


def test_shapes_must_fit():
    with pytest.raises(ValueError, match="`xmin` to be of shape \\(2,\\), as the spectra are, but got \\(\\)"):
        compare_distributions(torch.ones(2, 5), torch.tensor(1.0))
