"""Maps from alphas to multipliers against the authors' figures."""

import math

import numpy as np
import pytest
import scipy.optimize
import torch

from lightning_farms.functional import normalize_multipliers, tb_linear_map, tb_log2, tb_sigmoid, tb_sqrt, tb_step

# reference/other.json, learning_rates: the authors' program, base rate 0.1, ratios 0.3 and 1.7, tau 10
ALPHAS = [3.5851, 5.1016, 1.5006, 3.0117, 2.2338, 1.9617, 2.4313, 3.2278, 3.4838, 4.1941]
BASE_LR = 0.1
OFFICIAL = {
    "tb_linear_map": (
        lambda a: tb_linear_map(a, 0.3, 1.7),
        [
            0.11104138,
            0.17,
            0.03,
            0.088748681,
            0.058505415,
            0.047926687,
            0.066183838,
            0.097150236,
            0.10710303,
            0.13471813,
        ],
    ),
    "tb_sqrt": (
        tb_sqrt,
        [
            0.10958631,
            0.13072506,
            0.070898675,
            0.10044111,
            0.086502327,
            0.081062864,
            0.090245369,
            0.10398219,
            0.10802699,
            0.11852911,
        ],
    ),
    "tb_log2": (
        tb_log2,
        [
            0.12006354,
            0.15323633,
            0.038165816,
            0.10367484,
            0.075576912,
            0.063362354,
            0.0835438,
            0.11019115,
            0.11736822,
            0.13481704,
        ],
    ),
    "tb_step": (
        lambda a: tb_step(a, 0.3, 1.7),
        [0.128, 0.156, 0.03, 0.086, 0.058, 0.044, 0.072, 0.1, 0.114, 0.142],
    ),
    "tb_sigmoid, 1 and 1": (
        tb_sigmoid,
        [
            0.31192955,
            0.31622776,
            0.031622787,
            0.070963229,
            0.031639257,
            0.031623861,
            0.031741573,
            0.21106083,
            0.30465016,
            0.3162179,
        ],
    ),
    "tb_sigmoid, 0.25 and 0.5": (
        lambda a: tb_sigmoid(a, 0.25, 0.5),
        [
            0.17661528,
            0.17782794,
            0.074989427,
            0.091782175,
            0.07499919,
            0.074990064,
            0.07505975,
            0.14527933,
            0.1745423,
            0.17782517,
        ],
    ),
}
MAPS = [tb_linear_map, tb_sigmoid, tb_sqrt, tb_log2, tb_step]


@pytest.mark.parametrize("name", OFFICIAL)
def test_official_figures(name):
    layerwise, expected = OFFICIAL[name]
    got = layerwise(torch.tensor(ALPHAS, dtype=torch.float64)) * BASE_LR
    torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-5, atol=0)


@pytest.mark.parametrize("layerwise", MAPS)
def test_equal_alphas_give_ones(layerwise):
    torch.testing.assert_close(layerwise(torch.full((4,), 2.3)), torch.ones(4, dtype=torch.float64), rtol=0, atol=0)
    torch.testing.assert_close(layerwise(torch.tensor([2.3])), torch.ones(1, dtype=torch.float64), rtol=0, atol=0)
    assert layerwise(torch.zeros(0)).shape == (0,)


@pytest.mark.parametrize("layerwise", MAPS)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_alphas_that_are_not_finite_get_one_and_move_nobody(layerwise, bad):
    alphas = torch.tensor(ALPHAS, dtype=torch.float64)
    mixed = torch.cat([alphas[:3], torch.tensor([bad]), alphas[3:], torch.tensor([bad])])
    before = mixed.clone()
    got = layerwise(mixed)
    assert got[3] == got[-1] == 1
    torch.testing.assert_close(torch.cat([got[:3], got[4:-1]]), layerwise(alphas), rtol=0, atol=0)
    torch.testing.assert_close(mixed, before, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(layerwise(torch.full((3,), bad)), torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize("layerwise", MAPS)
def test_larger_alpha_larger_multiplier_in_float64(layerwise):
    got = layerwise(torch.tensor([2.0, 2.2, 2.5, 3.9]))
    assert got.dtype == torch.float64
    assert (got.diff() > 0).all()
    assert (got > 0).all()


def test_sigmoid_strengths_are_not_rounded_to_single_precision():
    got = tb_sigmoid(torch.tensor([0.0, 100.0]), s_low=0.1, s_high=0.3)
    expected = torch.tensor([10**-0.05, 10**0.15], dtype=torch.float64)
    torch.testing.assert_close(got, expected, rtol=1e-14, atol=0)


def test_linear_map_and_step_stay_within_their_ratios():
    alphas = torch.tensor(ALPHAS)
    linear, step = tb_linear_map(alphas, 0.6, 1.1), tb_step(alphas, 0.6, 1.1)
    assert (linear.min().item(), linear.max().item()) == pytest.approx((0.6, 1.1), rel=1e-15)
    assert step.min().item() == 0.6
    assert step.max().item() == pytest.approx(0.6 + 0.5 * 9 / 10)


def test_step_gives_equal_alphas_the_mean_of_their_ranks():
    got = tb_step(torch.tensor([3.0, 2.0, 3.0, 5.0]), 1.0, 2.0)
    assert got.tolist() == [1 + 1.5 / 4, 1.0, 1 + 1.5 / 4, 1 + 3 / 4]


@pytest.mark.parametrize("layerwise", [tb_sqrt, tb_log2])
def test_root_and_logarithm_have_mean_one(layerwise):
    assert layerwise(torch.tensor(ALPHAS)).mean().item() == pytest.approx(1.0, rel=1e-14)


@pytest.mark.parametrize("layerwise", MAPS)
@pytest.mark.parametrize("shape", [(), (2, 2)])
def test_rejects_what_is_no_vector(layerwise, shape):
    with pytest.raises(ValueError, match="Expected argument `alphas` to be a vector, but got shape"):
        layerwise(torch.ones(shape))


@pytest.mark.parametrize(
    "ratios", [(0.0, 1.0), (-0.5, 1.0), (1.5, 0.5), (0.5, math.inf), (math.nan, 1.0), (0.5, math.nan)]
)
@pytest.mark.parametrize("layerwise", [tb_linear_map, tb_step])
def test_rejects_ratios(layerwise, ratios):
    with pytest.raises(
        ValueError, match="`lr_min_ratio` and `lr_max_ratio` to satisfy 0 < lr_min_ratio <= lr_max_ratio"
    ):
        layerwise(torch.ones(2), *ratios)


@pytest.mark.parametrize("value", [-0.1, math.nan, math.inf])
@pytest.mark.parametrize("name", ["s_low", "s_high"])
def test_rejects_strengths(name, value):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be finite and not negative, but got {value}"):
        tb_sigmoid(torch.ones(2), **{name: value})


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_rejects_tau(value):
    with pytest.raises(ValueError, match=f"Expected argument `tau` to be finite and positive, but got {value}"):
        tb_sigmoid(torch.ones(2), tau=value)


@pytest.mark.parametrize("rule", [tb_linear_map, tb_step, tb_sigmoid])
def test_alphas_equal_to_rounding_are_equal(rule):
    alphas = 2.1 + 1e-12 * torch.arange(5, dtype=torch.float64)
    assert rule(alphas).tolist() == [1.0] * 5
    assert rule(2.1 + 1e-3 * torch.arange(5, dtype=torch.float64)).unique().numel() == 5


@pytest.mark.parametrize("mean", ["mean", "geometric"])
@pytest.mark.parametrize(("low", "high"), [(0.0, math.inf), (0.3, 3.0), (0.9, 1.2), (0.0, 1.5), (1.0, 1.0)])
def test_normalised_multipliers_have_mean_one_and_one_common_factor(mean, low, high):
    generator = torch.Generator().manual_seed(0)
    for _ in range(50):
        multipliers = torch.exp(2 * torch.randn(7, generator=generator, dtype=torch.float64))
        weights = torch.randint(1, 1000, (7,), generator=generator)
        found = normalize_multipliers(multipliers, weights, mean, low, high)
        moment = np.log if mean == "geometric" else np.asarray

        def excess(log_factor, m=multipliers, w=weights, moment=moment):
            clipped = np.clip(np.exp(log_factor) * m.numpy(), max(low, 1e-300), high)
            return np.average(moment(clipped), weights=w.numpy()) - moment(1.0)

        assert abs(np.average(moment(found.numpy()), weights=weights.numpy()) - moment(1.0)) < 1e-12
        if low < 1:
            root = scipy.optimize.brentq(excess, -30, 30, xtol=1e-14)
            expected = np.clip(np.exp(root) * multipliers.numpy(), low, high)
            torch.testing.assert_close(found, torch.from_numpy(expected), rtol=1e-10, atol=0)


def test_normalising_refuses_what_has_no_mean_of_one():
    ones = torch.ones(2)
    with pytest.raises(ValueError, match="`low` and `high`"):
        normalize_multipliers(ones, ones, low=1.5)
    with pytest.raises(ValueError, match="`mean` to be"):
        normalize_multipliers(ones, ones, "median")
    with pytest.raises(ValueError, match="`weights` to have 2"):
        normalize_multipliers(ones, torch.ones(3))
    assert normalize_multipliers(torch.ones(0), torch.ones(0)).numel() == 0
