"""Error bars, p-values and random baselines of whole analyses: seeded, each layer's own, right for random layers."""

import math

import numpy as np
import pytest
import torch
from torch import nn

from lightning_farms.analysis import FARMS, Diagnostics, Selection, WholeMatrix, analyze
from lightning_farms.analysis._engine.measure import layer_seed
from lightning_farms.functional import bootstrap_interval, fit_hill, goodness_of_fit
from lightning_farms.functional.random_matrix import shuffle_entries

EVERYTHING = Diagnostics(bootstrap=20, p_value=20, marchenko_pastur=True, twin=True)


@pytest.fixture
def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(30, 60), nn.Conv2d(12, 24, 3), nn.Linear(30, 30), nn.Linear(3, 3))


def gaussian(shape, seed=0, dtype=torch.float32):
    """A layer of independent normal entries."""
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)
    if len(shape) == 2:
        module = nn.Linear(shape[1], shape[0], bias=False, device="meta")
    else:
        module = nn.Conv2d(shape[1], shape[0], shape[2:], bias=False, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


def test_draws_of_a_layer_are_its_own(model):
    together = analyze(model, diagnostics=EVERYTHING)
    for name in ("0", "1", "2"):
        alone = analyze(model, diagnostics=EVERYTHING, selection=Selection(include=(name,)), workers=2, workspace=1)
        assert alone[name] == together[name]
        assert alone[name].twin == together[name].twin
    assert analyze(model, diagnostics=EVERYTHING)["1"] == together["1"]


def test_other_seed_draws_otherwise(model):
    first, second = (analyze(model, diagnostics=Diagnostics(bootstrap=20, twin=True, seed=seed)) for seed in (0, 1))
    for name in ("0", "1", "2"):
        assert first[name].alpha == second[name].alpha
        assert first[name].alpha_low != second[name].alpha_low
        assert first[name].twin != second[name].twin


def test_layers_of_equal_weights_have_draws_apart():
    layer = gaussian((30, 30))
    report = analyze(nn.Sequential(layer, gaussian((30, 30))), diagnostics=EVERYTHING)
    assert report["0"].alpha == report["1"].alpha
    assert report["0"].twin.alpha != report["1"].twin.alpha
    assert report["0"].alpha_low != report["1"].alpha_low


@pytest.mark.parametrize("fit", ["hill", "ks", "peak_corrected"])
def test_figures_of_the_fit_are_those_of_the_functions(fit):
    module, method = gaussian((30, 60), dtype=torch.float64), WholeMatrix(fit=fit)
    wanted = Diagnostics(bootstrap=30, p_value=30, level=0.8, seed=3)
    (row,) = analyze(module, method, diagnostics=wanted, keep_eigenvalues=True)
    seed = layer_seed("weight", 3)
    low, high = bootstrap_interval(row.eigenvalues, method.fit_tail, draws=30, level=0.8, seed=seed)
    p_value = goodness_of_fit(row.eigenvalues, method.fit_tail, draws=30, seed=seed)
    assert row.p_value == p_value.item()
    expected = min(low.item(), row.alpha), max(high.item(), row.alpha)  # refits that scan may all lie on one side
    assert row.interval == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("method", [FARMS(), FARMS(fit="hill_paper"), WholeMatrix()])
def test_interval_contains_alpha(method):
    for seed in range(10):
        model = nn.Sequential(gaussian((20, 90), seed), gaussian((24, 12, 3, 3), seed), gaussian((12, 12), seed))
        for row in analyze(model, method, diagnostics=Diagnostics(bootstrap=40, seed=seed)):
            assert row.alpha_low <= row.alpha <= row.alpha_high
            assert row.interval == (row.alpha_low, row.alpha_high)


def test_interval_of_averaged_blocks_is_that_of_a_mean():
    """Four independent blocks: half as wide as that of one, about."""
    widths = []
    for rows in (24, 96):
        reports = [analyze(gaussian((rows, 24, 3, 3), s), diagnostics=Diagnostics(bootstrap=60)) for s in range(8)]
        widths.append(np.mean([row.alpha_high - row.alpha_low for (row,) in reports]))
    assert widths[1] / widths[0] == pytest.approx(0.5, abs=0.08)


def test_standard_error_is_the_bootstraps_about():
    (row,) = analyze(gaussian((150, 150)), diagnostics=Diagnostics(bootstrap=200, level=0.68))
    assert row.standard_error == pytest.approx((row.alpha - 1) / math.sqrt(row.tail_size), rel=1e-12)
    assert 0.5 < (row.alpha_high - row.alpha_low) / (2 * row.standard_error) < 2


@pytest.mark.parametrize("shape", [(20, 60), (24, 12, 3, 3)])
def test_twin_is_the_analysis_of_the_shuffled_weight(shape):
    module = gaussian(shape)
    (row,) = analyze(module, diagnostics=Diagnostics(twin=True, seed=5))
    kind = "linear" if len(shape) == 2 else "convolution"
    if kind == "linear":
        shuffled = gaussian(shape)
        shuffled.weight.data = shuffle_entries(module.weight.data, layer_seed("weight", 5))
        (expected,) = analyze(shuffled)
        assert row.twin == expected
    assert row.relative_alpha == row.alpha / row.twin.alpha
    assert (row.twin.kind, row.twin.shape, row.twin.windows) == (kind, shape, row.windows)
    assert row.twin.twin is None
    assert row.twin.frobenius_norm_squared == pytest.approx(row.frobenius_norm_squared, rel=0.2)
    assert row.twin.eigenvalues is None


def test_twin_takes_the_structure_away():
    torch.manual_seed(0)
    weight = torch.randn(60, 60) + 3 * torch.randn(60, 3) @ torch.randn(3, 60)
    module = gaussian((60, 60))
    module.weight.data = weight
    (row,) = analyze(module, diagnostics=Diagnostics(twin=True, marchenko_pastur=True))
    assert row.mp_spikes == 3
    assert row.twin.mp_spikes == 0
    assert row.stable_rank < 5 < row.twin.stable_rank
    assert row.relative_alpha < 0.97


def test_a_skipped_layer_has_neither_twin_nor_figures(model):
    row = analyze(model, diagnostics=EVERYTHING)["3"]
    assert row.status == "skipped"
    assert row.twin is None
    assert all(math.isnan(value) for value in (row.relative_alpha, row.alpha_low, row.p_value, row.mp_variance))


@pytest.mark.parametrize(
    ("shape", "seeds"), [((16, 16), 60), ((4, 64), 60), ((8, 200), 30), ((64, 64), 20), ((3, 40, 3, 3), 30)]
)
def test_relative_alpha_of_random_layers_is_one_whatever_their_shape(shape, seeds):
    """Alpha itself is 2.05 to 2.3 for these shapes, at Q = 1: the bias of small windows, which the twin shares."""
    model = nn.Sequential(*(gaussian(shape, seed) for seed in range(seeds)))
    ratios = np.array([math.log(row.relative_alpha) for row in analyze(model, diagnostics=Diagnostics(twin=True))])
    assert abs(ratios.mean()) < 3.5 * ratios.std() / math.sqrt(seeds)
    assert abs(ratios.mean()) < 0.06


@pytest.mark.parametrize(("shape", "windows"), [((200, 200), 1), ((100, 400), 4), ((300, 100), 3)])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e3])
def test_marchenko_pastur_law_of_a_random_layer(shape, windows, scale):
    module = gaussian(shape)
    module.weight.data *= scale
    (row,) = analyze(module, diagnostics=Diagnostics(marchenko_pastur=True))
    size = min(shape)
    assert row.windows == windows
    assert row.mp_variance == pytest.approx(scale**2, rel=0.03)
    assert row.mp_lower_edge == 0.0
    assert row.mp_upper_edge == pytest.approx(4 * size * row.mp_variance, rel=1e-12)
    assert row.mp_spikes <= 0.34
    assert row.mp_soft_rank == pytest.approx(1.0, abs=0.1)
    (whole,) = analyze(module, WholeMatrix(), diagnostics=Diagnostics(marchenko_pastur=True))
    edges = [whole.mp_variance * (math.sqrt(shape[0]) + sign * math.sqrt(shape[1])) ** 2 for sign in (-1, 1)]
    assert (whole.mp_lower_edge, whole.mp_upper_edge) == pytest.approx(edges, rel=1e-12)
    assert whole.mp_variance == pytest.approx(scale**2, rel=0.03)


def test_p_value_tells_a_power_law_from_a_bulk():
    random = np.random.RandomState(0)
    left, right = (np.linalg.qr(random.standard_normal((100, 100)))[0] for _ in range(2))
    pareto = left * np.sqrt(random.pareto(1.5, size=100) + 1) @ right
    bulk = gaussian((100, 100), dtype=torch.float64)
    law = gaussian((100, 100), dtype=torch.float64)
    law.weight.data = torch.tensor(pareto)
    report = analyze(nn.Sequential(law, bulk), diagnostics=Diagnostics(p_value=100))
    assert report["0"].p_value > 0.1 > report["1"].p_value


def test_fit_of_the_interval_is_that_of_the_method():
    (row,) = analyze(gaussian((60, 60), dtype=torch.float64), keep_eigenvalues=True)
    assert row.alpha == pytest.approx(fit_hill(row.eigenvalues).alpha.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["bootstrap", "p_value", "seed"])
def test_rejects_negative_numbers(name):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be 0 or more, but got -1"):
        Diagnostics(**{name: -1})


@pytest.mark.parametrize("level", [0, 1, -0.5, 95, math.nan])
def test_rejects_level(level):
    with pytest.raises(ValueError, match=f"Expected argument `level` to be between 0 and 1, but got {level}"):
        Diagnostics(level=level)


def test_is_a_value_with_everything_off():
    assert Diagnostics() == Diagnostics(0, 0, marchenko_pastur=False, twin=False, level=0.95, seed=0)
    assert hash(Diagnostics(twin=True)) == hash(Diagnostics(twin=True))
    with pytest.raises(TypeError, match="positional argument"):
        Diagnostics(0, 0, True)
