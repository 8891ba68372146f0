"""Against pandas (moving average), numpy (quantiles, interpolation), and cases counted by hand."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from lightning_farms.functional import clip_to_quantiles, moving_average, ramp, squeezing_outlier

NAN = math.nan
ALPHAS = st.lists(st.floats(1.1, 30.0), min_size=1, max_size=40)


def vector(*values):
    return torch.tensor(values, dtype=torch.float64)


@pytest.mark.parametrize("decay", [0.0, 0.3, 0.9])
def test_moving_average_is_that_of_pandas(decay):
    alphas = np.random.default_rng(0).uniform(2, 6, (12, 5))
    average = vector(*[NAN] * 5)
    expected = pd.DataFrame(alphas).ewm(alpha=1 - decay, adjust=False).mean().to_numpy()
    for row, wanted in zip(alphas, expected, strict=True):
        average = moving_average(average, torch.tensor(row), decay)
        np.testing.assert_allclose(average.numpy(), wanted, rtol=1e-13)


def test_moving_average_passes_over_what_is_not_finite():
    result = moving_average(vector(2.0, NAN, math.inf, 2.0), vector(NAN, 3.0, 3.0, 4.0), 0.5)
    torch.testing.assert_close(result, vector(NAN, 3.0, 3.0, 3.0), equal_nan=True)


@given(ALPHAS, st.floats(0, 0.499))
def test_clipping_is_numpys(alphas, quantile):
    low, high = np.quantile(alphas, [quantile, 1 - quantile])
    result = clip_to_quantiles(torch.tensor([NAN, *alphas, math.inf], dtype=torch.float64), quantile)
    assert math.isnan(result[0])
    assert result[-1] == math.inf
    np.testing.assert_allclose(result[1:-1].numpy(), np.clip(alphas, low, high), rtol=1e-12)


def test_clipping_takes_one_outlier_to_its_neighbour():
    alphas = torch.cat([torch.linspace(2, 3, 20, dtype=torch.float64), vector(50.0)])
    assert clip_to_quantiles(alphas, 1 / 20).max() == pytest.approx(3.0)
    assert clip_to_quantiles(alphas, 1 / 40).max() > 20


def test_nothing_to_clip():
    assert clip_to_quantiles(vector(NAN, NAN), 0.1).isnan().all()
    assert clip_to_quantiles(vector(), 0.1).numel() == 0


@given(st.integers(0, 20), st.integers(0, 15))
def test_ramp_is_numpys_interpolation(step, steps):
    start, target = vector(1.0, 0.5, 3.0), vector(2.0, 1.5, 0.1)
    expected = [
        np.interp(step, [0, steps], [a, b]) if steps else b
        for a, b in zip(start.tolist(), target.tolist(), strict=True)
    ]
    result = ramp(start, target, step, steps)
    np.testing.assert_allclose(result.numpy(), expected, rtol=1e-13)
    assert torch.equal(result, target) == (step >= steps)


@pytest.mark.parametrize(
    ("multipliers", "outlier"),
    [
        ([0.5, 0.52, 0.55, 0.51, 0.53, 1.5], 5),
        ([1.45, 0.5, 1.46, 1.4, 1.47, 1.5], 1),
        ([0.5, 0.5, 0.5, 1.5, 0.5, 0.5], 3),
        ([0.5, 0.7, 0.9, 0.6, 0.8, 1.5], None),
        ([0.5, 0.55, 1.45, 1.5, 0.5, 1.5], None),
        ([1.0, 1.0, 1.0, 1.0, 1.0, 1.0], None),
        ([0.5, 0.51, 0.5, 0.5, 1.5], None),
    ],
)
def test_outlier(multipliers, outlier):
    assert squeezing_outlier(vector(*multipliers)) == outlier


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: moving_average(vector(1.0), vector(1.0, 2.0), 0.5), "`current` to have 1 entries, but got 2"),
        (lambda: moving_average(vector(1.0), vector(1.0), 1.0), r"`decay` to be in \[0, 1\), but got 1.0"),
        (lambda: clip_to_quantiles(torch.zeros(2, 2), 0.1), "`alphas` to be a vector"),
        (lambda: clip_to_quantiles(vector(1.0), 0.5), r"`quantile` to be in \[0, 0.5\), but got 0.5"),
        (lambda: ramp(vector(1.0), vector(1.0, 2.0), 1, 2), "`target` to have 1 entries"),
        (lambda: ramp(vector(1.0), vector(1.0), -1, 2), "`step` to be 0 or more, but got -1"),
        (lambda: squeezing_outlier(vector(1.0), 1.0), r"`share` to be in \(0, 1\), but got 1.0"),
    ],
)
def test_wrong_arguments(call, match):
    with pytest.raises(ValueError, match=match):
        call()
