"""FARMS and WholeMatrix: what they accept, and which stages they choose."""

import dataclasses
import pickle

import pytest
import torch

from lightning_farms.analysis import FARMS, SpectralMethod, WholeMatrix
from lightning_farms.functional import fit_hill, fit_ks, fit_peak


@pytest.mark.parametrize("method", [FARMS(), FARMS(0.5, 64, 9, fit="ks"), WholeMatrix(), WholeMatrix(fit="peak")])
def test_is_a_frozen_value(method):
    assert isinstance(method, SpectralMethod)
    assert pickle.loads(pickle.dumps(method)) == method
    assert hash(dataclasses.replace(method)) == hash(method)
    assert dataclasses.replace(method, fit="peak_corrected") != method
    with pytest.raises(dataclasses.FrozenInstanceError, match="cannot assign to field 'fit'"):
        method.fit = "ks"


def test_defaults():
    assert dataclasses.asdict(FARMS()) == {
        "aspect_ratio": 1.0,
        "window": None,
        "steps": None,
        "fit": "hill",
        "compat": None,
        "blocks": "averaged",
    }
    assert dataclasses.asdict(WholeMatrix()) == {"fit": "hill", "compat": None}
    assert (FARMS.label, WholeMatrix.label) == ("farms", "whole")


@pytest.mark.parametrize("method", [FARMS, WholeMatrix])
def test_options_are_keyword_only(method):
    positional = (1.0, None, None, "hill") if method is FARMS else ("hill",)
    with pytest.raises(TypeError, match="positional argument"):
        method(*positional)


@pytest.mark.parametrize("method", [FARMS, WholeMatrix])
def test_rejects_unknown_choices(method):
    known = r"\('hill', 'hill_paper', 'ks', 'peak', 'peak_corrected'\)"
    with pytest.raises(ValueError, match=f"`fit` to be one of {known}, but got 'x'"):
        method(fit="x")
    with pytest.raises(ValueError, match="`compat` to be None or \"official\", but got 'x'"):
        method(compat="x")


@pytest.mark.parametrize("ratio", [0, -1.0, float("nan"), float("inf")])
def test_rejects_ratio(ratio):
    with pytest.raises(ValueError, match="Expected argument `aspect_ratio` to be a positive number, but got"):
        FARMS(ratio)


@pytest.mark.parametrize("value", [0, -1, 1.5])
@pytest.mark.parametrize("name", ["window", "steps"])
def test_rejects_window_and_steps(name, value):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be None or a positive integer, but got"):
        FARMS(**{name: value})


@pytest.mark.parametrize("arguments", [(1.0,), (1.0, 100), (1.0, None, 9)])
def test_official_needs_window_and_steps(arguments):
    with pytest.raises(ValueError, match=r'`window` and `steps` to be given with compat="official"'):
        FARMS(*arguments, compat="official")


@pytest.mark.parametrize("method", [FARMS, WholeMatrix])
def test_fit_is_the_named_one(method):
    values = torch.rand(3, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * 5
    expected = {
        "hill": fit_hill(values),
        "hill_paper": fit_hill(values, form="paper"),
        "ks": fit_ks(values),
        "peak": fit_peak(values),
        "peak_corrected": fit_peak(values, lower_bound="corrected"),
    }
    for fit, result in expected.items():
        for got, column in zip(method(fit=fit).fit_tail(values), result, strict=True):
            torch.testing.assert_close(got, column, rtol=0, atol=0, equal_nan=True)


def test_whole_matrix_is_one_window():
    assert WholeMatrix().windows(30, 70, "linear")[:4] == (30, 70, (0,), (0,))


@pytest.mark.parametrize(
    ("method", "kind", "positions", "pools"),
    [
        (FARMS(), "linear", 1, True),
        (FARMS(), "parameter", 7, True),
        (FARMS(), "convolution", 9, False),
        (FARMS(), "transposed convolution", 9, False),
        (FARMS(), "convolution", 1, True),
        (FARMS(blocks="averaged"), "convolution", 9, False),
        (FARMS(blocks="pooled"), "convolution", 9, True),
        (FARMS(blocks="pooled"), "transposed convolution", 9, True),
        (FARMS(1.0, 9, 9, compat="official", blocks="pooled"), "convolution", 9, True),
        (FARMS(1.0, 9, 9, compat="official"), "convolution", 1, False),
        (FARMS(1.0, 9, 9, compat="official"), "linear", 1, True),
        (WholeMatrix(), "convolution", 9, True),
        (WholeMatrix(compat="official"), "convolution", 9, True),
    ],
)
def test_pooling(method, kind, positions, pools):
    assert method.pools_blocks(kind, positions) is pools


def test_official_convolutions_are_tall_and_halved():
    matrices = torch.zeros(9, 3, 64)
    official = WholeMatrix(compat="official")
    assert official.orient(matrices, "convolution").shape == (9, 64, 3)
    assert (
        official.orient(matrices, "linear").shape == WholeMatrix().orient(matrices, "convolution").shape == (9, 3, 64)
    )
    assert official.eigenvalue_scale("convolution") == 0.5
    assert official.eigenvalue_scale("linear") == WholeMatrix().eigenvalue_scale("convolution") == 1.0


def test_rejects_unknown_blocks():
    with pytest.raises(ValueError, match=r"`blocks` to be one of \('averaged', 'pooled'\), but got 'mean'"):
        FARMS(blocks="mean")
    with pytest.raises(TypeError, match="unexpected keyword argument 'blocks'"):
        WholeMatrix(blocks="pooled")


@pytest.mark.parametrize(
    ("method", "forgives"),
    [
        (FARMS(), True),
        (FARMS(fit="hill_paper", blocks="pooled"), True),
        (WholeMatrix(), True),
        (FARMS(fit="ks"), False),
        (WholeMatrix(fit="peak"), False),
        (FARMS(fit="peak_corrected"), False),
        (FARMS(1.0, 9, 9, compat="official"), False),
        (WholeMatrix(compat="official"), False),
    ],
)
def test_which_fits_forgive_rounding(method, forgives):
    assert method.forgives_rounding is forgives
