"""Separated eigenvalues: power laws with planted ones, the chance of a false one, and a slow loop."""

import numpy as np
import pytest
import torch

from lightning_farms.functional import fit_ks, separated_eigenvalues


def power_law(size, alpha=2.69, seed=None):
    share = (torch.arange(size, dtype=torch.float64) + 0.5) / size
    if seed is not None:
        share = torch.rand(size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return share ** (-1 / (alpha - 1))


@pytest.mark.parametrize("planted", [1, 2, 7])
def test_planted_ones_are_counted(planted):
    spectrum = power_law(150)
    giants = spectrum.max() * torch.linspace(800, 1000, planted)
    assert separated_eigenvalues(torch.cat([giants, spectrum]), torch.tensor(1.0)) == planted
    assert separated_eigenvalues(spectrum, torch.tensor(1.0)) == 0


def test_a_giant_moves_alpha_as_reported_and_leaving_it_out_brings_it_back():
    spectrum = power_law(50)
    with_giant = torch.cat([spectrum, torch.tensor([3e3], dtype=torch.float64)])
    before, after = fit_ks(spectrum), fit_ks(with_giant)
    assert before.alpha.item() == pytest.approx(2.69, abs=0.05)
    assert after.alpha.item() == pytest.approx(2.37, abs=0.05)
    count = separated_eigenvalues(with_giant, after.xmin)
    assert count == 1
    assert fit_ks(with_giant.sort().values[:-count]).alpha == before.alpha


def test_chance_of_a_false_one_is_the_probability():
    spectra = torch.stack([power_law(80, seed=seed) for seed in range(2000)])
    for probability in (0.05, 0.2):
        share = (separated_eigenvalues(spectra, torch.ones(2000), probability=probability) > 0).double().mean()
        assert probability / 2 < share < probability  # a bound: one spectrum may have several such gaps


def test_is_a_loop_over_spacings():
    for seed in range(20):
        spectrum = power_law(30, seed=seed)
        spectrum[:3] *= 10 ** (seed / 2)
        logs = np.sort(np.log(spectrum[spectrum > 1.2].numpy() / 1.2))[::-1]
        n = len(logs)
        spacings = [(i + 1) * (logs[i] - (logs[i + 1] if i + 1 < n else 0)) for i in range(n)]
        tried = [r for r in range(1, n // 2 + 1) if n - r >= 5]
        chances = {r: (1 + spacings[r - 1] / sum(spacings[r:])) ** -(n - r) for r in tried}
        expected = max((r for r in tried if chances[r] * r * (r + 1) < 0.01), default=0)
        assert separated_eigenvalues(spectrum, torch.tensor(1.2, dtype=torch.float64)) == expected


def test_only_what_exceeds_the_threshold_counts():
    spectra = torch.stack([torch.cat([power_law(100), torch.tensor([1e5], dtype=torch.float64)])] * 2)
    counts = separated_eigenvalues(spectra, torch.ones(2), threshold=torch.tensor([1e6, 1e3]))
    assert counts.tolist() == [0, 1]


def test_what_is_no_tail_has_none():
    spectra = torch.tensor([[1.0, 1.1, 1.2, 1.3, 1e9], [0.0, 0.0, 0.0, 0.0, 1e9]])
    assert separated_eigenvalues(spectra, torch.tensor([1.0, 0.0])).tolist() == [0, 0]


@pytest.mark.parametrize("probability", [0.0, 1.0, -1.0])
def test_probability(probability):
    with pytest.raises(ValueError, match=f"`probability` to be between 0 and 1, but got {probability}"):
        separated_eigenvalues(power_law(20), torch.tensor(1.0), probability=probability)
