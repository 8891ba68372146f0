"""Which alphas stand out, against scipy's median absolute deviation."""

import numpy as np
import pytest
from scipy.stats import median_abs_deviation

from lightning_farms.analysis.outliers import outliers


def test_three_robust_standard_deviations():
    alphas = np.random.default_rng(0).standard_t(1.5, size=200)
    distance = (alphas - np.median(alphas)) / median_abs_deviation(alphas, scale="normal")
    expected = {str(i): "high" if d > 0 else "low" for i, d in enumerate(distance) if abs(d) > 3}
    assert set(expected.values()) == {"high", "low"}
    assert outliers({str(i): alpha for i, alpha in enumerate(alphas)}, fit="hill") == expected


@pytest.mark.parametrize(
    ("alphas", "fit", "expected"),
    [
        ([1.5, 3.0, 7.0], "ks", {"0": "low", "2": "high"}),
        ([1.5, 3.0, 7.0], "hill", {}),
        ([1.8] * 9 + [9.0], "hill", {}),
        ([float("nan"), 2.0], "ks", {}),
        ([], "ks", {}),
    ],
)
def test_few_layers_and_the_range_of_well_trained_ones(alphas, fit, expected):
    assert outliers({str(i): alpha for i, alpha in enumerate(alphas)}, fit=fit) == expected


@pytest.mark.parametrize(("error", "expected"), [(0.25, {"9": "high"}), (0.35, {})])
def test_a_layer_within_its_own_error_is_none(error, expected):
    alphas = {str(i): 1.8 + 0.01 * i for i in range(9)} | {"9": 2.145}  # median 1.845
    assert outliers(alphas, fit="hill") == {"9": "high"}
    assert outliers(alphas, fit="hill", errors={"9": error}) == expected


def test_the_range_of_well_trained_layers_knows_no_error():
    assert outliers({"a": 1.5}, fit="ks", errors={"a": 2.0}) == {"a": "low"}
