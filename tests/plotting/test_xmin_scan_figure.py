"""The scan over xmin as a picture, against the fits of powerlaw and of fit_ks."""

import math

import numpy as np
import pytest
import torch

from lightning_farms import analyze
from lightning_farms.analysis import FARMS, WholeMatrix
from lightning_farms.functional import fit_ks, scan_ks
from lightning_farms.plotting import xmin_scan_figure


def spectrum(size=120, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(size, generator=generator, dtype=torch.float64) ** -0.6 - 0.7


def curves(figure):
    left, right = figure.axes
    return {line.get_label(): line.get_xydata() for line in (*left.get_lines(), *right.get_lines())}


def test_the_curve_is_that_of_each_candidate_fitted_alone():
    values = spectrum(40).sort().values
    drawn = curves(xmin_scan_figure(values[torch.randperm(40)], title="fc"))
    for xmin, distance in drawn["KS distance D"]:
        tail = values[values >= xmin].numpy()
        alpha = 1 + len(tail) / np.log(tail / xmin).sum()
        expected = np.abs(1 - (tail / xmin) ** (1 - alpha) - np.arange(len(tail)) / len(tail)).max()
        assert distance == pytest.approx(expected, rel=1e-9)
        assert dict(drawn[r"$\alpha$ (right)"])[xmin] == pytest.approx(alpha, rel=1e-9)
    assert len(drawn["KS distance D"]) == 39


def test_the_chosen_one_is_marked():
    values = spectrum()
    fit = fit_ks(values)
    for xmin in (math.nan, fit.xmin.item()):
        drawn = curves(xmin_scan_figure(values, title="fc", xmin=xmin))
        assert drawn["_chosen"].tolist() == [[fit.xmin, pytest.approx(fit.ks_distance.item())]]
        [label] = [label for label in drawn if label.startswith("$x_")]
        assert f"{fit.alpha:.2f}" in label
        assert f"{fit.tail_size} eigenvalues" in label


def test_many_candidates_are_thinned_but_for_the_best():
    values = spectrum(3000)
    scan = scan_ks(values, candidates=50)
    assert 50 <= len(scan.xmin) <= 51
    assert scan.ks_distance.min() == pytest.approx(fit_ks(values).ks_distance.item())
    everything = scan_ks(values[:300])
    assert len(everything.xmin) == 299
    torch.testing.assert_close(everything.ks_distance.min(), fit_ks(values[:300]).ks_distance)


@pytest.mark.parametrize("values", [[1.0], [2.0, 2.0, 2.0], [0.0, 1.0], [float("nan"), 3.0]])
def test_without_two_positive_values_there_is_no_candidate(values):
    with pytest.raises(ValueError, match="`eigenvalues` to have two different positive values"):
        xmin_scan_figure(values, title="fc")


@pytest.mark.parametrize(
    ("arguments", "message"), [((torch.ones(2, 3), 5), r"to be \(N,\)"), ((torch.ones(3), 0), "`candidates`")]
)
def test_arguments(arguments, message):
    with pytest.raises(ValueError, match=message):
        scan_ks(arguments[0], candidates=arguments[1])


def test_a_row_of_a_report_draws_its_own():
    torch.manual_seed(0)
    model = torch.nn.Linear(40, 30)
    row = analyze(model, WholeMatrix(fit="ks"), keep_eigenvalues=True)["weight"]
    drawn = curves(row.plot_xmin_scan())
    assert drawn["_chosen"][0].tolist() == [pytest.approx(row.xmin), pytest.approx(row.ks_distance)]
    with pytest.raises(ValueError, match="'weight' does not: analyze with keep_eigenvalues=True"):
        analyze(model, FARMS())["weight"].plot_xmin_scan()
