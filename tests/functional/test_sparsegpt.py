"""SparseGPT against a slow optimal brain surgeon in NumPy, least squares, and the authors' figures."""

import math
from fractions import Fraction

import numpy as np
import pytest
import torch

from lightning_farms.functional import NofM, magnitude_mask, sparsegpt, wanda_mask


def made(rows=12, columns=24, tokens=200, seed=0, dead=()):
    """A weight and correlated inputs, float64."""
    random = np.random.RandomState(seed)
    mixing = random.standard_normal((columns, columns)) / columns**0.5 + 0.5 * np.eye(columns)
    inputs = random.standard_normal((tokens, columns)) @ mixing + random.standard_normal((tokens, 1))
    inputs[:, list(dead)] = 0
    return torch.tensor(random.standard_normal((rows, columns))), torch.tensor(inputs)


def error(weight, found, inputs):
    return float(((found - weight) @ inputs.T).norm() / (weight @ inputs.T).norm())


def zeros(found):
    return int((~found.mask).sum())


def surgeon(weight, hessian, damping, block, count=None, pattern=None):
    """Remove weights column by column with the inverse of what is left of the Hessian, inverted anew each time."""
    weight, columns = weight.copy(), weight.shape[1]
    hessian = hessian + damping * np.mean(np.diag(hessian)) * np.eye(columns)
    inverses = [np.linalg.inv(hessian[column:, column:]) for column in range(columns)]
    cost = np.array([inverse[0, 0] for inverse in inverses])
    mask = np.ones(weight.shape, dtype=bool)
    for start in range(0, columns, block):
        stop = min(start + block, columns)
        if pattern is None:
            due = [math.floor(Fraction(count * end, columns) + Fraction(1, 2)) for end in (start, stop)]
            scores = (weight[:, start:stop] ** 2 / cost[start:stop]).ravel()
            chosen = np.zeros(scores.size, dtype=bool)
            chosen[np.argsort(scores, kind="stable")[: due[1] - due[0]]] = True
            mask[:, start:stop] = ~chosen.reshape(len(weight), -1)
        for column in range(start, stop):
            if pattern is not None and column % pattern.m == 0:
                group = slice(column, column + pattern.m)
                order = np.argsort(weight[:, group] ** 2 / cost[group], axis=1, kind="stable")
                np.put_along_axis(mask[:, group], order[:, : pattern.n], False, axis=1)
            inverse = inverses[column]
            lost = np.where(mask[:, column], 0.0, weight[:, column])
            weight[:, column:] -= np.outer(lost / inverse[0, 0], inverse[0])
            weight[~mask[:, column], column] = 0.0
    return weight, mask


@pytest.mark.parametrize("block", [1, 5, 8, 24, 128])
@pytest.mark.parametrize("count", [0, 1, 100, 144, 201, 288])
def test_numbers_of_zeros_as_the_surgeon(count, block):
    weight, inputs = made(seed=count + block)
    hessian = inputs.T @ inputs
    found = sparsegpt(weight, hessian, count, column_block=block)
    expected, mask = surgeon(weight.numpy(), hessian.numpy(), 0.01, block, count=count)
    assert zeros(found) == count
    np.testing.assert_array_equal(found.mask.numpy(), mask)
    np.testing.assert_allclose(found.weight.numpy(), expected, rtol=0, atol=1e-10)
    assert (found.weight[~found.mask] == 0).all()
    assert (found.damping, found.dtype, found.dead) == (0.01, torch.float64, 0)


@pytest.mark.parametrize(("pattern", "block"), [((2, 4), 8), ((1, 4), 128), ((4, 8), 8), ((1, 2), 2), ((3, 3), 6)])
def test_patterns_as_the_surgeon(pattern, block):
    weight, inputs = made(seed=block)
    hessian = inputs.T @ inputs
    found = sparsegpt(weight, hessian, NofM(*pattern), column_block=block, damping=0.1)
    expected, mask = surgeon(weight.numpy(), hessian.numpy(), 0.1, block, pattern=NofM(*pattern))
    np.testing.assert_array_equal(found.mask.numpy(), mask)
    np.testing.assert_allclose(found.weight.numpy(), expected, rtol=0, atol=1e-10)
    assert ((~found.mask).unflatten(1, (-1, pattern[1])).sum(2) == pattern[0]).all()


@pytest.mark.parametrize("amount", [0.5, 0.7, NofM(2, 4)])
def test_outputs_change_less_than_by_masks_alone_and_more_than_by_least_squares(amount):
    random = np.random.RandomState(3)
    weight = torch.tensor(random.standard_normal((16, 96)))
    inputs = torch.tensor(random.standard_normal((400, 24)) @ random.standard_normal((24, 96)))  # of rank 24
    inputs += 0.3 * torch.tensor(random.standard_normal((400, 96)))
    found = sparsegpt(weight, inputs.T @ inputs, amount, column_block=16)
    best = torch.zeros_like(weight)
    for row, stays in enumerate(found.mask):
        best[row, stays] = torch.linalg.lstsq(inputs[:, stays], inputs @ weight[row]).solution
    masked = weight * magnitude_mask(weight, amount)
    by_wanda = weight * wanda_mask(weight, inputs.square().mean(0), amount)
    reached = error(weight, found.weight, inputs)
    assert error(weight, best, inputs) < reached < 0.6 * error(weight, masked, inputs)
    assert reached < 0.6 * error(weight, by_wanda, inputs)


# reference/other.json, pruning_one_linear: block 64, damping 0.01
OFFICIAL = {
    0.5: (3843, -186.12285855412483, 7176.68557346119, 0.23389272391796112),
    0.7: (5378, -140.15991762652993, 5998.889193608811, 0.42516446113586426),
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("ratio", OFFICIAL)
def test_figures_of_the_authors(ratio, dtype):
    weight = torch.tensor(np.random.RandomState(3).standard_normal((48, 160)).astype(np.float32))
    inputs = np.random.RandomState(4).standard_normal((6, 32, 160)) * (1 + np.arange(160) / 40)
    inputs = torch.tensor(inputs.astype(np.float32)).reshape(-1, 160)
    hessian = inputs.T.to(dtype) @ inputs.to(dtype)
    found = sparsegpt(weight, hessian, ratio, column_block=64, counts="official")
    count, total, squares, relative = OFFICIAL[ratio]
    kept = found.weight.double()
    assert zeros(found) == count
    assert float(kept.sum()) == pytest.approx(total, rel=1e-6)
    assert float(kept.square().sum()) == pytest.approx(squares, rel=1e-6)
    assert error(weight, found.weight, inputs) == pytest.approx(relative, rel=1e-5)
    assert found.dtype == dtype
    exact = sparsegpt(weight, hessian, ratio, column_block=64)
    assert zeros(exact) == round(48 * 160 * ratio)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_types_and_arguments_stay(dtype):
    weight, inputs = made(seed=5)
    weight, hessian = weight.to(dtype), (inputs.T @ inputs).float()
    before = weight.clone(), hessian.clone()
    found = sparsegpt(torch.nn.Parameter(weight), hessian, 100)
    wide = sparsegpt(weight.double(), hessian.double(), 100)
    assert found.weight.dtype == dtype
    assert not found.weight.requires_grad
    assert found.mask.equal(wide.mask)
    torch.testing.assert_close(found.weight, wide.weight.to(dtype), rtol=2e-2, atol=1e-3)
    assert (found.weight[~found.mask] == 0).all()
    assert weight.equal(before[0])
    assert hessian.equal(before[1])


@pytest.mark.parametrize("scale", [1e-12, 1e-3, 1e9])
def test_the_hessians_scale_means_nothing(scale):
    weight, inputs = made(seed=6)
    hessian = (inputs.T @ inputs).float()
    found, scaled = sparsegpt(weight, hessian, 0.6), sparsegpt(weight, hessian * scale, 0.6)
    assert found.mask.equal(scaled.mask)
    torch.testing.assert_close(found.weight, scaled.weight, rtol=1e-4, atol=1e-5)


# ---- dead inputs -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("block", [5, 128])
def test_dead_inputs_go_first_and_count(block):
    dead = [3, 4, 17]
    weight, inputs = made(seed=7, dead=dead)
    found = sparsegpt(weight, inputs.T @ inputs, 150, column_block=block)
    assert (zeros(found), found.dead) == (150, 3)
    assert not found.mask[:, dead].any()
    assert (found.weight[:, dead] == 0).all()
    if block == 128:  # the others as if the dead had never been there
        living = [column for column in range(24) if column not in dead]
        alone = sparsegpt(weight[:, living], (inputs.T @ inputs)[living][:, living], 150 - 36)
        torch.testing.assert_close(found.weight[:, living], alone.weight)


@pytest.mark.parametrize("block", [4, 128])
def test_more_dead_weights_than_are_to_go(block):
    dead = [0, 5, 6, 20]
    weight, inputs = made(seed=8, dead=dead)
    found = sparsegpt(weight, inputs.T @ inputs, 17, column_block=block)
    assert zeros(found) == 17
    assert found.mask.sum(0)[[column for column in range(24) if column not in dead]].eq(12).all()
    assert found.weight[found.mask].equal(weight[found.mask])
    if block == 128:
        assert found.mask[:, dead].equal(magnitude_mask(weight[:, dead], 17))


def test_a_pattern_with_more_dead_inputs_than_go_keeps_its_number():
    weight, inputs = made(seed=9, dead=[0, 1, 3, 5])
    found = sparsegpt(weight, inputs.T @ inputs, NofM(2, 4))
    assert ((~found.mask).unflatten(1, (-1, 4)).sum(2) == 2).all()
    assert found.mask[:, 2].all()
    assert found.mask[:, [0, 1, 3]].equal(
        torch.stack([magnitude_mask(row.unsqueeze(0), 2)[0] for row in weight[:, [0, 1, 3]]])
    )
    assert not found.mask[:, 5].any()
    official = sparsegpt(weight, inputs.T @ inputs, NofM(2, 4), counts="official")
    assert not official.mask[:, [0, 1, 3, 5]].any()
    assert (~official.mask).unflatten(1, (-1, 4)).sum(2)[:, 1:].eq(2).all()


def test_inputs_that_are_all_dead():
    weight, _ = made()
    found = sparsegpt(weight, torch.zeros(24, 24), 50)
    assert (zeros(found), found.dead) == (50, 24)
    assert found.weight[found.mask].equal(weight[found.mask])


# ---- damping and precision -------------------------------------------------------------------------------------------


def test_a_singular_hessian_is_damped_and_it_says_so():
    weight, inputs = made(tokens=10, seed=10)
    hessian = inputs.T @ inputs
    found = sparsegpt(weight, hessian, 100, damping=0.0)
    damped = sparsegpt(weight, hessian, 100, damping=found.damping)
    assert found.damping > 0
    assert found.weight.equal(damped.weight)
    assert error(weight, found.weight, inputs) < 0.2 * error(weight, weight * magnitude_mask(weight, 100), inputs)


def test_damping_grows_by_tens_until_it_works():
    weight, inputs = made(seed=11)
    values, vectors = torch.linalg.eigh(inputs.T @ inputs)
    values[0] = -0.05 * values.mean()  # 1 % of the mean is too little, 10 % is enough
    found = sparsegpt(weight, vectors @ values.diag() @ vectors.T, 100, damping=0.01)
    assert found.damping == pytest.approx(0.1)
    assert zeros(found) == 100


def test_a_hessian_that_is_none_is_refused():
    weight, inputs = made(seed=12)
    hessian = (inputs.T @ inputs) * 100
    hessian.diagonal().copy_(torch.ones(24))
    with pytest.raises(ValueError, match=r"`hessian` to be positive semi-definite, but got .* 10 of its mean diagonal"):
        sparsegpt(weight, hessian, 100)


def test_precision_follows_the_condition():
    weight, inputs = made(seed=13)
    hessian = inputs.T @ inputs
    assert sparsegpt(weight, hessian.float(), 100).dtype == torch.float32
    assert sparsegpt(weight, hessian, 100).dtype == torch.float64
    assert sparsegpt(weight, hessian.float(), 100, damping=1e-7).dtype == torch.float64
    massive = inputs * torch.where(torch.arange(24) == 7, 1e4, 1.0)
    loud = sparsegpt(weight, (massive.T @ massive).float(), 100, damping=1e-6)
    assert loud.dtype == torch.float64
    assert loud.damping == 1e-6
    assert loud.mask.equal(sparsegpt(weight, massive.T @ massive, 100, damping=1e-6).mask)


def test_weights_that_overflow_their_type_are_refused():
    """Of two inputs that are nearly one, the weight that stays takes the sum: 120,000 in half precision."""
    weight, hessian = torch.full((1, 2), 6e4, dtype=torch.float16), torch.tensor([[1.0, 0.999], [0.999, 1.0]])
    with pytest.raises(ValueError, match=r"some overflow torch.float16. Use torch.bfloat16"):
        sparsegpt(weight, hessian, 1)
    assert sparsegpt(weight.bfloat16(), hessian, 1).weight.max() > 1e5


# ---- arguments -------------------------------------------------------------------------------------------------------

WEIGHT, HESSIAN = torch.ones(2, 4), torch.eye(4)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((torch.ones(4), HESSIAN, 1), {}, "`weight` to be a floating-point matrix"),
        ((WEIGHT.where(HESSIAN[:2] == 0, math.nan), HESSIAN, 1), {}, "`weight` to be finite"),
        ((WEIGHT, torch.eye(3), 1), {}, r"`hessian` to be .* of shape \(4, 4\), but got shape \(3, 3\)"),
        ((WEIGHT, torch.eye(4, dtype=torch.int64), 1), {}, "`hessian` to be a floating-point matrix.*int64"),
        ((WEIGHT, HESSIAN * math.nan, 1), {}, "`hessian` to be finite, but got NaN"),
        ((WEIGHT, HESSIAN.where(HESSIAN == 0, math.inf), 1), {}, "`hessian` to be finite"),
        ((WEIGHT, -HESSIAN, 1), {}, "`hessian` to have no negative number on its diagonal"),
        ((WEIGHT, HESSIAN, 9), {}, r"`amount` to be in \[0, 8\], but got 9"),
        ((WEIGHT, HESSIAN, NofM(1, 3)), {}, "m a divisor of 4 inputs"),
        ((WEIGHT, HESSIAN, NofM(1, 4)), {"column_block": 2}, "`column_block` to be positive, and a multiple"),
        ((WEIGHT, HESSIAN, 1), {"column_block": 0}, "`column_block` to be positive"),
        ((WEIGHT, HESSIAN, 1), {"damping": -0.1}, "`damping` to be finite and not negative, but got -0.1"),
        ((WEIGHT, HESSIAN, 1), {"damping": math.nan}, "`damping` to be finite"),
        ((WEIGHT, HESSIAN, 1), {"counts": "official"}, '`amount` to be a fraction for counts="official"'),
    ],
)
def test_bad_arguments(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        sparsegpt(*arguments, **options)
