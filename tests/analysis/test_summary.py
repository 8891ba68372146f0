"""Summaries against numpy."""

import math

import numpy as np
import pytest

from lightning_farms.analysis.summary import QUANTILES, summarize


@pytest.mark.parametrize("count", [1, 2, 37])
def test_summary(count):
    values = np.random.default_rng(0).normal(size=count)
    summary = summarize([*values, math.nan, math.inf])
    assert summary.layers == count
    assert (summary.mean, summary.std) == pytest.approx((values.mean(), values.std()))
    assert list(summary.quantiles.values()) == pytest.approx(np.quantile(values, QUANTILES))


def test_no_values():
    summary = summarize([math.nan])
    assert summary.layers == 0
    assert all(math.isnan(value) for value in (summary.mean, summary.std, *summary.quantiles.values()))
