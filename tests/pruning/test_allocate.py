"""Totals, bounds, patterns and controls of an allocation, and what is refused."""

import math
from fractions import Fraction

import pytest
import torch
from torch import nn

from lightning_farms.functional import NofM
from lightning_farms.pruning import (
    ALLOCATIONS,
    FARMSAllocation,
    RampAllocation,
    UniformAllocation,
    WholeMatrixAllocation,
    allocate,
    allocate_from_alphas,
)
from tests.pruning.tiny_models import Part, blocks_of_linears


def parts_of(sizes, per_block=2):
    return [Part(f"l{i}", f"b{i // per_block}", size) for i, size in enumerate(sizes)]


@pytest.fixture(scope="module")
def model():
    return blocks_of_linears([(24, 32), (32, 40), (40, 24)], blocks=4)


@pytest.mark.parametrize("sparsity", [0, 0.005, 0.3333, 0.5, 0.7, 0.85, 0.999])
@pytest.mark.parametrize("allocation", [WholeMatrixAllocation(epsilon=0.9), RampAllocation(), UniformAllocation()])
def test_the_total_is_exact(model, allocation, sparsity):
    ratios = allocate(model, sparsity, allocation)
    assert ratios.size == 4 * (24 * 32 + 32 * 40 + 40 * 24)
    assert ratios.zeros == math.floor(Fraction(str(sparsity)) * ratios.size + Fraction(1, 2))
    assert abs(ratios.reached - sparsity) <= 0.5 / ratios.size
    assert ratios.sparsity == sparsity
    for layer in ratios:
        assert abs(layer.zeros - layer.ratio * layer.size) < 1


def test_the_weights_are_as_they_were(model):
    before = {name: values.clone() for name, values in model.state_dict().items()}
    allocate(model, 0.5, FARMSAllocation())
    assert all(torch.equal(values, before[name]) for name, values in model.state_dict().items())


def test_the_ramp_rises_with_depth_alone(model):
    ratios = allocate(model, 0.5, RampAllocation(epsilon=0.3))
    assert list(ratios.by_block().values()) == pytest.approx([0.35, 0.45, 0.55, 0.65], abs=1e-3)
    assert [layer.source for layer in ratios] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3]
    falling = allocate(model, 0.5, RampAllocation(epsilon=0.3, reverse=True))
    assert list(falling.by_block().values()) == pytest.approx([0.65, 0.55, 0.45, 0.35], abs=1e-3)
    assert (ratios.allocation, falling.allocation) == ("ramp", "ramp-reversed")


def test_uniform(model):
    ratios = allocate(model, 0.37, UniformAllocation())
    assert [layer.ratio for layer in ratios] == pytest.approx([0.37] * 12, rel=1e-12)


def test_bounds_hold_and_the_total_too(model):
    ratios = allocate(model, 0.7, WholeMatrixAllocation(epsilon=1.0, floor=0.6, cap=0.8))
    each = [layer.ratio for layer in ratios]
    assert (min(each), max(each)) == pytest.approx((0.6, 0.8))
    assert ratios.zeros == round(0.7 * ratios.size)


@pytest.mark.parametrize(("sparsity", "m"), [(0.5, 4), (0.6, 8), (NofM(2, 4), None), (NofM(5, 8), None)])
def test_patterns_have_an_n_of_each_layer(model, sparsity, m):
    ratios = allocate(model, sparsity, RampAllocation(epsilon=0.5), pattern_m=m)
    target = sparsity.n / sparsity.m if isinstance(sparsity, NofM) else sparsity
    length = sparsity.m if isinstance(sparsity, NofM) else m
    assert ratios.sparsity == target
    assert ratios.zeros <= target * ratios.size
    assert ratios.reached == pytest.approx(target, abs=0.02)
    free = allocate(model, target, RampAllocation(epsilon=0.5))
    assert len({layer.pattern for layer in ratios}) > 1
    for layer in ratios:
        assert abs(layer.pattern.n - free[layer.name].ratio * length) < 1
        assert layer.pattern.m == length
        assert layer.zeros == layer.size * layer.pattern.n // length
        assert ratios.amount(layer.name) == NofM(layer.pattern.n, length)


def test_a_uniform_pattern_is_the_same_everywhere(model):
    ratios = allocate(model, NofM(2, 4), UniformAllocation())
    assert {layer.pattern for layer in ratios} == {NofM(2, 4)}
    assert ratios.reached == 0.5


def test_a_pattern_that_does_not_divide_the_inputs_names_the_layer():
    model = blocks_of_linears([(24, 30), (30, 24)], blocks=2)
    with pytest.raises(ValueError, match=r"`pattern_m` to divide .* but got 4, and 30 inputs in 'layers.0.2'"):
        allocate(model, 0.5, UniformAllocation(), pattern_m=4)
    for pattern in ({"sparsity": NofM(0, 0)}, {"sparsity": 0.5, "pattern_m": 0}):
        with pytest.raises(ValueError, match="Expected argument `pattern_m` to be at least 1, but got 0"):
            allocate(model, **pattern)


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.5, math.nan, math.inf, NofM(4, 4)])
def test_a_sparsity_out_of_range(model, sparsity):
    with pytest.raises(ValueError, match=r"Expected argument `sparsity` to be in \[0, 1\)"):
        allocate(model, sparsity)
    with pytest.raises(ValueError, match=r"Expected argument `sparsity` to be in \[0, 1\)"):
        allocate_from_alphas({}, [], 1.0)


@pytest.mark.parametrize(
    ("sparsity", "options"), [(0.7, {"cap": 0.6}), (0.3, {"floor": 0.4}), (0.95, {"cap": 0.9, "floor": 0.5})]
)
def test_bounds_that_do_not_allow_the_sparsity(model, sparsity, options):
    with pytest.raises(ValueError, match=r"Expected argument `sparsity` to be in \[floor, cap\]"):
        allocate(model, sparsity, UniformAllocation(**options))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epsilon": 1.2}, r"Expected argument `epsilon` to be in \[0, 1\], but got 1.2"),
        ({"cap": 1.1}, "Expected arguments `floor` and `cap` to satisfy"),
        ({"floor": 0.8, "cap": 0.7}, "Expected arguments `floor` and `cap` to satisfy"),
        ({"granularity": "matrix"}, "Expected argument `granularity` to be one of"),
    ],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        FARMSAllocation(**options)


def test_a_model_without_blocks():
    with pytest.raises(ValueError, match="to hold its blocks in a"):
        allocate(nn.Linear(4, 4), 0.5)
    with pytest.raises(ValueError, match="to have weights to prune, but got none"):
        allocate([], 0.5)


def test_alphas_that_are_there_already():
    parts = parts_of([100, 300, 200, 200])
    alphas = {"l0": 2.0, "l1": 3.0, "l2": 4.0, "l3": math.nan}
    ratios = allocate_from_alphas(alphas, parts, 0.5, FARMSAllocation(epsilon=0.5))
    assert [layer.score for layer in ratios] == [0.5, 0.5, 1.5, 1.5]
    assert ratios.by_block() == {"b0": 0.25, "b1": 0.75}
    assert ratios.notes == (
        "no figure for 1 of 4 layers (no finite alpha), which are left out of their block's mean, or get the "
        "score 1: l3",
    )
    by_layer = allocate_from_alphas(alphas, parts, 0.5, FARMSAllocation(epsilon=0.5, granularity="layer"))
    assert [layer.score for layer in by_layer] == [0.5, 1.0, 1.5, 1.0]


def test_alphas_have_to_be_there_for_every_layer():
    with pytest.raises(ValueError, match="an entry for every layer, but 2 of 3 have none: l0, l2"):
        allocate_from_alphas({"l1": 2.0}, parts_of([10, 10, 10]), 0.5)


def test_the_names_of_the_command_line():
    assert list(ALLOCATIONS) == ["farms", "whole", "owl", "dlp", "ramp", "uniform", "file"]
    assert {name for name, kind in ALLOCATIONS.items() if kind.needs_calibration} == {"owl", "dlp"}
