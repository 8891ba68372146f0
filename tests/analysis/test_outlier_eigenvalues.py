"""Alpha without outlier eigenvalues, and other laws, from weights whose spectra are made to measure."""

import numpy as np
import pytest
import torch
from torch import nn

from lightning_farms.analysis import FARMS, Diagnostics, WholeMatrix, analyze
from lightning_farms.functional import compare_distributions, fit_hill, fit_ks, spike_threshold

ASKED = Diagnostics(outliers=True, distributions=True)


def linear(matrix):
    layer = nn.Linear(matrix.shape[1], matrix.shape[0], bias=False)
    layer.weight.data = torch.as_tensor(matrix, dtype=torch.float32)
    return layer


def with_spectrum(eigenvalues, seed=0):
    """A square matrix of these eigenvalues, in random directions."""
    generator = torch.Generator().manual_seed(seed)
    left, right = (
        torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64, generator=generator))[0]
        for _ in range(2)
    )
    return left @ torch.as_tensor(eigenvalues).sqrt().diag() @ right


def power_law(size=50, alpha=2.69):
    return ((np.arange(size) + 0.5) / size) ** (-1 / (alpha - 1))


def random_matrix(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def row_of(matrix, method, diagnostics=ASKED):
    return analyze(linear(matrix), method, diagnostics=diagnostics)["weight"]


@pytest.mark.parametrize("method", [WholeMatrix(fit="ks"), FARMS(fit="ks"), WholeMatrix(), FARMS(fit="hill_paper")])
def test_one_giant_eigenvalue_of_a_power_law(method):
    plain = row_of(with_spectrum(power_law()), method)
    giant = row_of(with_spectrum(np.append(power_law(), 3e3)), method)
    assert (plain.outlier_eigenvalues, giant.outlier_eigenvalues) == (0, 1)
    assert plain.alpha_without_outliers == plain.alpha
    assert giant.alpha < plain.alpha - 0.2
    assert giant.alpha_without_outliers == pytest.approx(
        plain.alpha, abs=0.05
    )  # of 50 and 51, the halves differ by one


@pytest.mark.parametrize("method", [WholeMatrix(), WholeMatrix(fit="ks")])
def test_spikes_of_a_random_matrix_are_those_beyond_the_tracy_widom_edge(method):
    bulk = random_matrix(200, 100)
    directions = [np.linalg.qr(random_matrix(size, 4, seed=1).numpy())[0] for size in (200, 100)]
    spikes = directions[0] @ np.diag([40.0, 45.0, 60.0, 90.0]) @ directions[1].T
    row = row_of(bulk + torch.from_numpy(spikes), method)
    eigenvalues = torch.linalg.svdvals(bulk + torch.from_numpy(spikes)) ** 2
    below = eigenvalues[eigenvalues <= spike_threshold(200, 100, 1.0)]
    assert len(below) == 96
    assert row.outlier_eigenvalues == 4
    fit = fit_hill if method.fit == "hill" else fit_ks
    assert row.alpha_without_outliers == pytest.approx(fit(below).alpha.item(), rel=1e-4)
    assert row.alpha_without_outliers > row.alpha


def test_a_tail_beyond_the_edge_is_no_outlier():
    scales = torch.arange(1, 121, dtype=torch.float64) ** -0.35  # some 8 % lie beyond the edge
    row = row_of(scales[:, None] * random_matrix(120, 120), WholeMatrix(fit="ks"))
    assert row.mp_spikes > 6
    assert row.outlier_eigenvalues == 0
    assert row.alpha_without_outliers == row.alpha


def test_of_a_random_matrix_nothing_is_left_out():
    model = nn.Sequential(nn.Linear(300, 100), nn.Conv2d(32, 64, 3), nn.Linear(64, 64))
    torch.manual_seed(3)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    for row in analyze(model, diagnostics=Diagnostics(outliers=True)):
        assert row.outlier_eigenvalues == 0
        assert row.alpha_without_outliers == row.alpha


def test_blocks_of_a_convolution_are_fitted_without_their_own():
    conv = nn.Conv2d(32, 128, 3, bias=False)
    conv.weight.data = random_matrix(128, 32, 3, 3).float()
    conv.weight.data[:32] += 3 * torch.outer(*random_matrix(2, 32).float())[..., None, None]  # all of one block
    row, plain = (analyze(conv, diagnostics=each)["weight"] for each in (ASKED, Diagnostics()))
    assert row.alpha == plain.alpha
    assert row.outlier_eigenvalues == 9  # one a kernel position, of four blocks one
    clean = nn.Conv2d(32, 96, 3, bias=False)
    clean.weight.data = conv.weight.data[32:]
    others = analyze(clean)["weight"].alpha
    assert row.alpha_without_outliers == pytest.approx(others, rel=0.03)


def test_where_too_few_are_left_there_is_no_alpha():
    row = row_of(with_spectrum(np.append(np.ones(8) + np.arange(8) / 9, [1e7, 1.1e7, 1.2e7])), WholeMatrix())
    assert row.outlier_eigenvalues in (0, 3)
    assert row.outlier_eigenvalues == 0 or np.isnan(row.alpha_without_outliers)


def test_ratios_are_those_of_the_fitted_tail():
    matrix = random_matrix(90, 60)
    row = row_of(matrix, WholeMatrix())
    eigenvalues = torch.linalg.svdvals(matrix) ** 2
    expected = compare_distributions(eigenvalues, fit_hill(eigenvalues).xmin)
    for name in ("lognormal", "exponential", "truncated"):
        ratio = getattr(expected, "truncated_power_law" if name == "truncated" else name)
        assert getattr(row, f"{name}_ratio") == pytest.approx(ratio.normalized.item(), rel=1e-3)
        assert getattr(row, f"{name}_p") == pytest.approx(ratio.p_value.item(), rel=1e-2, abs=1e-6)


def test_what_is_not_asked_for_changes_nothing():
    layer = linear(random_matrix(60, 60))
    row, plain = analyze(layer, diagnostics=ASKED)["weight"], analyze(layer)["weight"]
    assert {name: value for name, value in vars(row).items() if value == getattr(plain, name)} | {} == {
        name: value for name, value in vars(plain).items() if value == value
    }
    assert repr(Diagnostics()) == (
        "Diagnostics(bootstrap=0, p_value=0, marchenko_pastur=False, twin=False, level=0.95, seed=0)"
    )
    assert repr(Diagnostics(outliers=True)).endswith("twin=False, outliers=True, level=0.95, seed=0)")


def test_the_report_says_how_far_alpha_moves():
    model = nn.ModuleDict({"a": linear(with_spectrum(np.append(power_law(), 3e3))), "b": linear(random_matrix(80, 80))})
    text = str(analyze(model, diagnostics=ASKED))
    assert "Without outlier eigenvalues alpha changes in 1 of 2 layers: a 2." in text
    assert text.count("(1 of 51 left out).") == 1
    assert "no outliers" in text.splitlines()[0]
    assert "In 1 of 2 layers it is another one than a power law" in text
    assert "No outlier eigenvalues in 1 layer." in str(analyze(model["b"], diagnostics=Diagnostics(outliers=True)))
