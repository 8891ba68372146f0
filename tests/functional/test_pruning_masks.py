"""Magnitude and Wanda against sorting in NumPy, and the authors' counts and figures."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightning_farms.functional import NofM, magnitude_mask, sparsegpt, wanda_mask

DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


def sorted_whole(scores, count):
    """The mask by a stable sort: of equal scores the earlier goes."""
    mask = np.ones(scores.size, dtype=bool)
    mask[np.argsort(scores.ravel(), kind="stable")[:count]] = False
    return mask.reshape(scores.shape)


def sorted_rows(scores, count):
    rows = len(scores)
    each, extra = divmod(count, rows)
    order = np.argsort(scores, axis=1, kind="stable")
    wanted = np.full(rows, each)
    if extra:
        following = np.take_along_axis(scores, order[:, each : each + 1], axis=1)[:, 0]
        wanted[np.argsort(following, kind="stable")[:extra]] += 1
    mask = np.ones(scores.shape, dtype=bool)
    for row in range(rows):
        mask[row, order[row, : wanted[row]]] = False
    return mask


def sorted_groups(scores, n, m):
    return np.concatenate([sorted_rows(part, n * len(part)) for part in np.split(scores, scores.shape[1] // m, 1)], 1)


def halves_up(ratio, size):
    return math.floor(Fraction(str(ratio)) * size + Fraction(1, 2))


@st.composite
def matrices(draw, multiple=1):
    """Few values, so that many are equal, or many values."""
    rows, columns = draw(st.integers(1, 7)), multiple * draw(st.integers(1, 12 // multiple))
    random = np.random.RandomState(draw(st.integers(0, 1000)))
    values = random.randint(-3, 4, (rows, columns)) if draw(st.booleans()) else random.standard_normal((rows, columns))
    squares = random.randint(0, 3, columns) ** 2 if draw(st.booleans()) else random.standard_normal(columns) ** 2
    dtype = draw(st.sampled_from(DTYPES))
    return torch.tensor(values).to(dtype), torch.tensor(squares, dtype=torch.float32)


def wanda_scores(weight, squares):
    wide = np.float64 if weight.dtype == torch.float64 else np.float32
    return np.abs(weight.to(torch.float64).numpy().astype(wide)) * np.sqrt(squares.numpy()).astype(wide)


@given(matrices(), st.integers(0, 100))
@settings(max_examples=200, deadline=None)
def test_fractions_and_numbers_of_zeros_as_by_sorting(made, hundredths):
    weight, squares = made
    before = weight.clone()
    count = halves_up(hundredths / 100, weight.numel())
    magnitudes = np.abs(weight.to(torch.float64).numpy())
    for amount in (hundredths / 100, count):
        whole = magnitude_mask(weight, amount)
        assert whole.dtype == torch.bool
        assert int((~whole).sum()) == count
        np.testing.assert_array_equal(whole.numpy(), sorted_whole(magnitudes, count))
        by_row = wanda_mask(weight, squares, amount)
        assert int((~by_row).sum()) == count
        np.testing.assert_array_equal(by_row.numpy(), sorted_rows(wanda_scores(weight, squares), count))
    assert weight.equal(before)


@pytest.mark.parametrize("m", [2, 4, 8, 16, 24])
def test_patterns_as_by_sorting(m):
    random = np.random.RandomState(m)
    for values in (random.standard_normal((5, 3 * m)), random.randint(-2, 3, (5, 3 * m))):
        weight, squares = torch.tensor(values, dtype=torch.float32), torch.tensor(random.randint(0, 3, 3 * m)).float()
        for n in {0, 1, m // 2, m - 1, m}:
            mask = magnitude_mask(weight, NofM(n, m))
            np.testing.assert_array_equal(mask.numpy(), sorted_groups(np.abs(weight.numpy()), n, m))
            assert ((~mask).unflatten(1, (-1, m)).sum(2) == n).all()
            expected = sorted_groups(wanda_scores(weight, squares), n, m)
            np.testing.assert_array_equal(wanda_mask(weight, squares, NofM(n, m)).numpy(), expected)


@pytest.mark.parametrize("kind", [np.int64, torch.tensor], ids=["numpy", "torch"])
def test_one_weight_is_one_weight_whoever_counted_it(kind):
    """What an allocation gives is a tensor: its 1 is a number of weights, not the fraction of all of them."""
    weight = torch.arange(1.0, 9.0).reshape(2, 4)
    assert int((~magnitude_mask(weight, kind(1))).sum()) == 1
    assert int((~wanda_mask(weight, torch.ones(4), kind(1))).sum()) == 1
    assert int((~sparsegpt(weight, torch.eye(4), kind(1)).mask).sum()) == 1
    assert torch.equal(magnitude_mask(weight, NofM(kind(1), 4)), magnitude_mask(weight, NofM(1, 4)))


def test_equal_weights_go_from_the_start():
    weight = torch.tensor([[1.0, -1.0, 1.0, 1.0], [1.0, 1.0, -1.0, 1.0]])
    assert magnitude_mask(weight, 5).tolist() == [[False] * 4, [False, True, True, True]]
    assert wanda_mask(weight, torch.ones(4), 5).tolist() == [[False] * 3 + [True], [False, False, True, True]]
    assert wanda_mask(weight, torch.ones(4), NofM(1, 2)).tolist() == [[False, True, False, True]] * 2
    assert magnitude_mask(torch.tensor([[-0.0, 0.0, 0.0]]), 2).tolist() == [[False, False, True]]


def test_rows_that_are_cheaper_lose_one_more():
    weight = torch.tensor([[4.0, 9.0, 5.0], [1.0, 3.0, 2.0], [7.0, 1.0, 8.0], [6.0, 2.0, 2.0]])
    lost = (~wanda_mask(weight, torch.ones(3), 6)).sum(1)
    assert lost.tolist() == [1, 2, 1, 2]  # the second candidates are 5, 2, 7, 2


def test_inputs_that_are_zero_go_first():
    weight = torch.tensor([[1.0, 100.0, 2.0], [1.0, -100.0, 2.0]])
    assert wanda_mask(weight, torch.tensor([1.0, 0.0, 1.0]), 2).tolist() == [[True, False, True]] * 2


@pytest.mark.parametrize(
    ("ratio", "size", "zeros"),
    [(0.5, 5, 3), (0.29, 100, 29), (0.7, 10, 7), (0.57, 100, 57), (1.0, 3, 3), (0.0, 3, 0), (0.15, 10, 2)],
)
def test_a_fraction_is_the_decimal_that_it_is_printed_as(ratio, size, zeros):
    assert int((~magnitude_mask(torch.arange(1.0, size + 1).unsqueeze(0), ratio)).sum()) == zeros


# reference/other.json, pruning_one_linear: zeros, sum and sum of squares of the weights that stay
OFFICIAL = {
    0.5: {"magnitude": (3841, None, 7054.118649695569), "wanda": (3840, -177.38675314188004, 6644.744289058638)},
    0.7: {"magnitude": (5377, None, 5943.339898397128), "wanda": (5376, -122.67421704530716, 5182.145430912917)},
}


@pytest.mark.parametrize("ratio", OFFICIAL)
def test_figures_of_the_authors(ratio):
    weight = torch.tensor(np.random.RandomState(3).standard_normal((48, 160)).astype(np.float32))
    inputs = np.random.RandomState(4).standard_normal((6, 32, 160)) * (1 + np.arange(160) / 40)
    mean_square = torch.tensor(inputs.astype(np.float32)).reshape(-1, 160).square().mean(0)
    masks = {
        "magnitude": magnitude_mask(weight, ratio, counts="official"),
        "wanda": wanda_mask(weight, mean_square, ratio, counts="official"),
    }
    for name, (zeros, total, squares) in OFFICIAL[ratio].items():
        kept = (weight * masks[name]).double()
        assert int((~masks[name]).sum()) == zeros
        assert float(kept.square().sum()) == pytest.approx(squares, rel=1e-9)
        assert total is None or float(kept.sum()) == pytest.approx(total, rel=1e-9)
    assert set((~masks["wanda"]).sum(1).tolist()) == {int(160 * ratio)}


def test_official_counts():
    weight = torch.tensor([[3.0, 1.0, 2.0, 2.0], [2.0, 5.0, 6.0, 7.0]])
    assert int((~magnitude_mask(weight, 0.25, counts="official")).sum()) == 4  # three are equal to the third
    assert int((~magnitude_mask(weight, 0.0, counts="official")).sum()) == 1
    assert int((~magnitude_mask(weight, 1.0, counts="official")).sum()) == 8
    assert int((~wanda_mask(weight, torch.ones(4), 0.74, counts="official")).sum()) == 4
    assert int((~wanda_mask(weight, torch.ones(4), 1.0, counts="official")).sum()) == 8
    for mask in (magnitude_mask, lambda *arguments, **options: wanda_mask(*arguments[:1], torch.ones(4), **options)):
        assert mask(weight, amount=NofM(2, 4), counts="official").equal(mask(weight, amount=NofM(2, 4)))


def test_masks_need_no_gradient():
    weight = torch.nn.Parameter(torch.randn(4, 4))
    assert not magnitude_mask(weight, 0.5).requires_grad
    assert not wanda_mask(weight, torch.ones(4), 0.5).requires_grad


WEIGHT = torch.ones(2, 4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(4), 1), {}, r"`weight` to be a floating-point matrix.* shape \(4,\)"),
        ((torch.ones(2, 4, dtype=torch.int64), 1), {}, "`weight` to be a floating-point matrix.*int64"),
        ((torch.ones(0, 4), 0), {}, "`weight` to be .* with entries"),
        ((torch.tensor([[1.0, math.nan]]), 1), {}, "`weight` to be finite"),
        ((torch.tensor([[1.0, math.inf]]), 1), {}, "`weight` to be finite"),
        ((WEIGHT, 9), {}, r"`amount` to be in \[0, 8\], but got 9"),
        ((WEIGHT, -1), {}, r"`amount` to be in \[0, 8\], but got -1"),
        ((WEIGHT, 1.01), {}, r"`amount` to be a fraction in \[0, 1\], but got 1.01"),
        ((WEIGHT, math.nan), {}, "`amount` to be a fraction"),
        ((WEIGHT, True), {}, "`amount` to be a fraction"),
        ((WEIGHT, NofM(1, 3)), {}, "m a divisor of 4 inputs, but got 1 of 3"),
        ((WEIGHT, NofM(1.5, 4)), {}, "`amount` to be n of m .* but got 1.5 of 4"),  # type: ignore[arg-type]
        ((WEIGHT, torch.tensor(9)), {}, r"`amount` to be in \[0, 8\], but got 9"),
        ((WEIGHT, NofM(3, 2)), {}, "`amount` to be n of m"),
        ((WEIGHT, NofM(0, 0)), {}, "`amount` to be n of m"),
        ((WEIGHT, 4), {"counts": "official"}, '`amount` to be a fraction for counts="official"'),
        ((WEIGHT, 0.5), {"counts": "theirs"}, "`counts` to be .* but got 'theirs'"),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        magnitude_mask(*arguments, **options)
    weight, amount = arguments
    with pytest.raises(ValueError, match=message):
        wanda_mask(weight, torch.ones(weight.shape[-1]), amount, **options)


@pytest.mark.parametrize(
    ("mean_square", "message"),
    [
        (torch.ones(2), r"`mean_square` to have shape \(4,\), but got \(2,\)"),
        (torch.tensor([1.0, 1.0, -1.0, 1.0]), "`mean_square` to be finite and not negative"),
        (torch.tensor([1.0, 1.0, math.nan, 1.0]), "`mean_square` to be finite and not negative"),
    ],
)
def test_bad_mean_squares(mean_square, message):
    with pytest.raises(ValueError, match=message):
        wanda_mask(WEIGHT, mean_square, 0.5)
