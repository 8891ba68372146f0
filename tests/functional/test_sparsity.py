"""Alphas to ratios to whole weights: the cases of an independent program and of the authors', and root finding."""

import itertools
import json
import math
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import brentq

from lightning_farms.functional import allocate_n_of_m, allocate_sparsity, linear_scores, official_sparsity

STORED = json.loads((Path(__file__).parent / "allocation_cases.json").read_text(encoding="utf-8"))


def expanded(case):
    """A case with a figure for every layer: models of many equal blocks are stored by the block."""
    if "layers_per_block" not in case:
        return case
    alphas = STORED["alphas"][case["alphas"]]
    per_block = case["layers_per_block"]
    blocks = len(alphas) // len(case["sizes"])

    def by_layer(values):
        return [value for value in values for _ in range(per_block)]

    return case | {
        "alphas": alphas,
        "sizes": case["sizes"] * blocks,
        "groups": by_layer(range(blocks)) if per_block > 1 else None,
        "ratios": by_layer(case["ratios"]),
        "official": case["official"] | {"ratios": by_layer(case["official"]["ratios"])},
    }


CASES = [expanded(case) for case in STORED["cases"]]
RIGHT = [case for case in CASES if "raises" not in case]
WRONG = [case for case in CASES if "raises" in case]
OFFICIAL = [case for case in CASES if "official" in case]


def name(case):
    return case["name"]


def vector(values):
    return torch.tensor([math.nan if value is None else value for value in values], dtype=torch.float64)


def allocated(case):
    scores = linear_scores(vector(case["alphas"]), case["epsilon"], case["groups"])
    return allocate_sparsity(scores, case["sizes"], case["sparsity"], floor=case["floor"], cap=case["cap"])


def test_all_cases_are_there():
    assert (len(RIGHT), len(WRONG), len(OFFICIAL)) == (24, 3, 25)


@pytest.mark.parametrize("case", RIGHT, ids=name)
def test_ratios_and_whole_weights(case):
    found = allocated(case)
    torch.testing.assert_close(found.ratios, vector(case["ratios"]), rtol=0, atol=1e-9)
    assert found.zeros.dtype == torch.int64
    assert found.zeros.tolist() == case["zeros"]
    assert int(found.zeros.sum()) == case["zeros_total"]
    assert int((found.ratios >= case["cap"] - 1e-12).sum()) == case["layers_at_cap"]


@pytest.mark.parametrize("case", WRONG, ids=name)
def test_what_cannot_be_allocated(case):
    with pytest.raises(ValueError, match=r"Expected argument `(sparsity|epsilon)`"):
        allocated(case)


@pytest.mark.parametrize("case", OFFICIAL, ids=name)
def test_ratios_of_the_authors(case):
    found = official_sparsity(vector(case["alphas"]), case["sizes"], case["sparsity"], case["epsilon"], case["groups"])
    torch.testing.assert_close(found, vector(case["official"]["ratios"]), rtol=0, atol=1e-9, equal_nan=True)
    reached = float((found * vector(case["sizes"])).sum() / sum(case["sizes"]))
    assert reached == pytest.approx(
        math.nan if case["official"]["global"] is None else case["official"]["global"], abs=1e-8, nan_ok=True
    )


SIZES = st.lists(st.integers(1, 2**60), min_size=1, max_size=12)
DECIMALS = st.integers(0, 1000).map(lambda thousandths: thousandths / 1000)


@given(st.data(), SIZES, DECIMALS, st.floats(0, 0.999))
@settings(max_examples=150, deadline=None)
def test_the_total_is_exact_whatever_the_sizes(data, sizes, sparsity, epsilon):
    alphas = data.draw(st.lists(st.floats(1, 20) | st.just(math.nan), min_size=len(sizes), max_size=len(sizes)))
    found = allocate_sparsity(linear_scores(vector(alphas), epsilon), sizes, sparsity)
    thousandths = round(sparsity * 1000)
    assert sum(found.zeros.tolist()) == (2 * thousandths * sum(sizes) + 1000) // 2000
    for ratio, zeros, size in zip(found.ratios.tolist(), found.zeros.tolist(), sizes, strict=True):
        assert 0 <= zeros <= size
        assert abs(zeros - Fraction(ratio) * size) <= 1 + Fraction(size, 2**50)


@given(st.data(), st.integers(2, 10), st.integers(1, 999), st.integers(0, 1000), st.integers(0, 1000))
@settings(max_examples=150, deadline=None)
def test_ratios_agree_with_a_root_finder(data, layers, thousandths, low, high):
    numbers = {"min_size": layers, "max_size": layers}
    scores = vector(data.draw(st.lists(st.floats(0.05, 2), **numbers)))
    sizes = data.draw(st.lists(st.integers(1, 10**6).map(lambda size: 1000 * size), **numbers))
    sparsity, floor, cap = thousandths / 1000, min(low, thousandths) / 1000, max(high, thousandths) / 1000
    weights = vector(sizes)

    def excess(factor):
        return float(((factor * scores).clip(floor, cap) * weights).sum() / weights.sum()) - sparsity

    found = allocate_sparsity(scores, sizes, sparsity, floor=floor, cap=cap)
    assert all(zeros <= cap * size + 1e-3 for zeros, size in zip(found.zeros.tolist(), sizes, strict=True))
    assert sum(found.zeros.tolist()) == thousandths * sum(sizes) // 1000
    ends = 0.0, 1.001 * cap / float(scores.min())
    if excess(ends[0]) < 0 < excess(ends[1]):
        expected = (brentq(excess, *ends, xtol=1e-14) * scores).clip(floor, cap)
    else:  # the sparsity is one of the bounds
        expected = torch.full_like(scores, sparsity)
    torch.testing.assert_close(found.ratios, expected, rtol=0, atol=1e-9)


def test_more_weights_than_a_float_counts():
    sizes = [2**60 + 1, 2**60 - 1, 3]
    found = allocate_sparsity(torch.ones(3), sizes, 0.5)
    assert found.zeros.tolist() == [2**59 + 1, 2**59 - 1 + 1, 1]  # of equal remainders the earlier layers' go up
    assert allocate_sparsity(torch.ones(1), [10**18 + 1], 0.7).zeros.item() == 7 * 10**17 + 1
    sizes_as_tensor = torch.tensor(sizes)
    assert allocate_sparsity(torch.ones(3), sizes_as_tensor, 0.5).zeros.equal(found.zeros)


def test_the_rest_goes_around_where_the_cap_stops_the_first():
    # 3 layers of 3, cap 0.9: at most 2 zeros each, 6 in all; 0.6 of 9 weights rounds to 5, 0.72 to 6, 0.73 to 7
    assert allocate_sparsity(torch.ones(3), [3, 3, 3], 0.6, cap=0.9).zeros.tolist() == [2, 2, 1]
    assert allocate_sparsity(torch.ones(3), [3, 3, 3], 0.7, cap=0.9).zeros.tolist() == [2, 2, 2]
    with pytest.raises(ValueError, match=r"allow 8 zeros in whole weights, but got 0\.85 and 0\.9, at most 6 zeros"):
        allocate_sparsity(torch.ones(3), [3, 3, 3], 0.85, cap=0.9)


def test_scores_by_the_block():
    alphas = vector([2.0, None, 4.0, 9.0, None])
    groups = ["b", "b", "a", "a", ("c", 1)]
    assert linear_scores(alphas, 0.25, groups).tolist() == [0.75, 0.75, 1.25, 1.25, 1.0]
    assert linear_scores(alphas.to(torch.float16), 0.25, groups).tolist() == [0.75, 0.75, 1.25, 1.25, 1.0]
    assert alphas[0] == 2
    assert alphas[1].isnan()


def test_differences_of_rounding_are_none():
    assert linear_scores(vector([3.0, 3.0 + 1e-12, 3.0]), 0.5).tolist() == [1.0, 1.0, 1.0]
    assert linear_scores(torch.zeros(0)).shape == (0,)


@given(st.data(), st.integers(1, 7), st.integers(2, 8), st.integers(1, 99))
@settings(max_examples=150, deadline=None)
def test_patterns_come_as_near_as_rounding_allows(data, layers, m, hundredths):
    numbers = {"min_size": layers, "max_size": layers}
    scores = vector(data.draw(st.lists(st.sampled_from([0.25, 0.5, 1.0, 1.5]), **numbers)))
    units = data.draw(st.lists(st.integers(1, 40), **numbers))
    sizes = [unit * m for unit in units]
    found = allocate_n_of_m(scores, sizes, hundredths / 100, m).tolist()
    target = Fraction(hundredths, 100) * sum(sizes)
    ratios = allocate_sparsity(scores, sizes, hundredths / 100).ratios.tolist()
    down = [math.floor(round(ratio * m, 9)) for ratio in ratios]
    up = [math.ceil(round(ratio * m, 9)) for ratio in ratios]
    totals = [
        sum(n * unit for n, unit in zip(choice, units, strict=True))
        for choice in itertools.product(*zip(down, up, strict=True))
    ]
    assert sum(n * unit for n, unit in zip(found, units, strict=True)) == max(t for t in totals if t <= target)
    assert all(low <= n <= high for low, n, high in zip(down, found, up, strict=True))


@pytest.mark.parametrize(("n", "m"), [(1, 3), (2, 3), (1, 6), (5, 6), (1, 12), (3, 7), (1, 48), (2, 4), (0, 3)])
def test_a_pattern_of_which_no_decimal_is_exact_is_reached_in_every_layer(n, m):
    assert allocate_n_of_m(torch.ones(4), [100 * m] * 4, n / m, m).tolist() == [n] * 4
    assert allocate_n_of_m(torch.ones(4), [200 * m] * 4, n / m, 2 * m).tolist() == [2 * n] * 4


def test_patterns_raise_the_largest_remainders_that_fill_the_target():
    scores = vector([0.875, 0.875, 1.125, 1.125])
    assert allocate_n_of_m(scores, [80, 80, 80, 80], 0.5, 4).tolist() == [2, 2, 2, 2]  # of 1.75, 1.75, 2.25, 2.25
    assert allocate_n_of_m(scores, [80, 80, 80, 80], 0.4, 4).tolist() == [1, 1, 2, 2]  # of 1.4, 1.4, 1.8, 1.8
    assert allocate_n_of_m(torch.ones(3), [8, 8, 8], 0.5, 4).tolist() == [2, 2, 2]
    assert allocate_n_of_m(torch.ones(2), [16, 16], 0.7, 4, cap=0.75).tolist() == [3, 2]
    assert allocate_n_of_m(vector([0.0, 1.0]), [8, 8], 0.5, 8).tolist() == [0, 8]


def test_patterns_of_sizes_without_a_common_divisor():
    sizes = [4 * (10**9 + shift) for shift in (7, 9, 21, 33, 87, 93, 97, 103)]
    found = allocate_n_of_m(torch.ones(8), sizes, 0.6, 4)
    left = Fraction(6, 10) * sum(sizes) - sum(int(n) * size // 4 for n, size in zip(found, sizes, strict=True))
    assert set(found.tolist()) == {2, 3}
    assert 0 <= left < min(sizes) // 4


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: linear_scores(torch.ones(2, 2)), "`alphas` to be a vector"),
        (lambda: linear_scores(torch.ones(2), -0.1), r"`epsilon` to be in \[0, 1\], but got -0.1"),
        (lambda: linear_scores(torch.ones(2), math.nan), "`epsilon`"),
        (lambda: linear_scores(torch.ones(2), 0.3, ["a"]), "`groups` to have 2 entries, but got 1"),
        (lambda: allocate_sparsity(torch.ones(2), [4], 0.5), "`scores` to have 1 entries"),
        (lambda: allocate_sparsity(torch.ones(2), [4, 0], 0.5), "`sizes` to be positive whole numbers.* got 0"),
        (lambda: allocate_sparsity(torch.ones(2), [4, 1.5], 0.5), "`sizes` to be positive whole numbers.* got 1.5"),
        (lambda: allocate_sparsity(-torch.ones(2), [4, 4], 0.5), "`scores` to be finite and not negative, but got -1"),
        (lambda: allocate_sparsity(torch.tensor([1.0, math.nan]), [4, 4], 0.5), "`scores` to be finite"),
        (lambda: allocate_sparsity(torch.ones(2), [4, 4], math.nan), "`sparsity` to be in"),
        (lambda: allocate_sparsity(torch.ones(2), [4, 4], 0.2, floor=0.3), r"`sparsity` to be in .*\[0.3, 1.0\]"),
        (lambda: allocate_sparsity(torch.ones(2), [4, 4], 0.5, floor=0.6, cap=0.4), "floor <= cap"),
        (lambda: allocate_sparsity(torch.ones(2), [4, 4], 0.5, cap=1.5), "floor <= cap <= 1"),
        (lambda: allocate_sparsity(torch.zeros(2), [4, 4], 0.5), "others hold enough weights for 0 only"),
        (lambda: allocate_n_of_m(torch.ones(2), [4, 6], 0.5, 4), "multiples of m = 4, but got 6"),
        (lambda: allocate_n_of_m(torch.ones(2), [4, 4], 0.5, 0), "`m` to be a positive integer, but got 0"),
        (lambda: allocate_n_of_m(torch.ones(2), [4, 4], 0.8, 4, cap=0.9), "at most 3 of 4"),
        (lambda: official_sparsity(torch.ones(2), [4], 0.5, 0.3), "`sizes` to have 2 entries, but got 1"),
        (lambda: official_sparsity(torch.ones(2), [4, 4], 0.5, -0.3), "`epsilon` to be finite and not negative"),
    ],
)
def test_bad_arguments(call, message):
    with pytest.raises(ValueError, match=message):
        call()
