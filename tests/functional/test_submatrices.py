"""Windows: coverage, flushness, ratio; the authors' rules against sums done by hand."""

import re

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from lightning_farms.functional import fixed_aspect_ratio_submatrices
from lightning_farms.functional.submatrices import (
    Windows,
    official_convolution_windows,
    official_linear_windows,
    slice_windows,
    window_grid,
)

RANDOM = np.random.RandomState(0)
SHAPES = [(1, 1), (1, 9), (9, 1), (2, 3), (64, 27), (512, 100), (100, 512), (513, 256), (1000, 999), (4096, 11)]
SHAPES += [tuple(int(size) for size in RANDOM.randint(1, 600, size=2)) for _ in range(20)]
RATIOS = [0.5, 0.75, 1.0, 1.5, 2.0]


def seen(starts, window, size):
    counts = np.zeros(size, dtype=int)
    for start in starts:
        assert 0 <= start <= size - window
        counts[start : start + window] += 1
    return counts


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", SHAPES)
def test_default_windows_cover_every_row_and_column(shape, ratio):
    grid = window_grid(*shape, ratio)
    assert not grid.shrunk
    for starts, window, size in zip(grid[2:4], grid[:2], shape, strict=True):
        assert seen(starts, window, size).min() >= 1
        assert starts[0] == 0
        assert starts[-1] + window == size
        assert len(starts) == -(-size // window)  # the fewest that cover


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", SHAPES)
def test_default_window_is_the_largest_in_a_square_of_the_smaller_dimension(shape, ratio):
    grid = window_grid(*shape, ratio)
    assert max(grid.height, grid.width) == min(shape)
    # off the ratio by no more than the rounding of one side, or by the one row or column that there must be
    if ratio <= 1:
        assert abs(grid.width - grid.height * ratio) <= 0.5
    else:
        assert abs(grid.height - grid.width / ratio) <= 0.5


@pytest.mark.parametrize("shape", SHAPES)
def test_square_windows_are_exactly_square(shape):
    assert window_grid(*shape).aspect_ratio == 1.0


@pytest.mark.parametrize("steps", [None, 1, 2, 7, 15])
@pytest.mark.parametrize("shape", SHAPES)
def test_given_steps(shape, steps):
    grid = window_grid(*shape, window=10, steps=steps)
    for starts, window, size in zip(grid[2:4], grid[:2], shape, strict=True):
        if steps is not None:
            assert len(starts) == min(steps, size - window + 1)
        assert list(starts) == sorted(set(starts))
        assert starts[0] == 0
        if len(starts) > 1:
            assert starts[-1] + window == size
        gaps = np.diff(starts)
        assert gaps.size == 0 or gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("ratio", RATIOS)
@pytest.mark.parametrize("shape", [(64, 48), (512, 100), (99, 512), (33, 33)])
def test_too_large_window_shrinks_with_its_ratio(shape, ratio):
    grid = window_grid(*shape, ratio, window=2000)
    assert grid.shrunk
    assert grid.height <= shape[0]
    assert grid.width <= shape[1]
    assert grid.height == shape[0] or grid.width == shape[1]  # as large as can be
    assert abs(grid.width - grid.height * ratio) <= 0.5 * max(1.0, ratio)


@pytest.mark.parametrize("ratio", [1 / 3, 0.35, 0.7, 1.1, 1.15, 1.7, 2.2])
@pytest.mark.parametrize("window", [3, 7, 30, 49, 90, 100])
def test_window_that_just_fits_is_not_shrunk(window, ratio):
    columns = max(1, round(window * ratio))
    grid = window_grid(window, columns, ratio, window)
    assert grid == Windows(window, columns, (0,), (0,), shrunk=False)


def test_windows_hold_the_matrix_entries():
    matrix = np.random.RandomState(1).standard_normal((23, 17))
    grid = window_grid(23, 17, 0.5, window=8, steps=3)
    assert grid == Windows(8, 4, (0, 8, 15), (0, 6, 13))  # round(7.5) = 8, round(6.5) = 6
    got = fixed_aspect_ratio_submatrices(torch.from_numpy(matrix), 0.5, window=8, steps=3)
    expected = np.stack([matrix[r : r + 8, c : c + 4] for r in (0, 8, 15) for c in (0, 6, 13)])
    torch.testing.assert_close(got, torch.from_numpy(expected), rtol=0, atol=0)
    assert grid.number == 9
    assert grid.aspect_ratio == 0.5


def test_leading_dimensions_are_more_matrices_and_windows_are_copies():
    matrices = torch.arange(2 * 3 * 7 * 4.0).reshape(2, 3, 7, 4)
    before = matrices.clone()
    got = fixed_aspect_ratio_submatrices(matrices)
    assert got.shape == (2, 3, 2, 4, 4)
    torch.testing.assert_close(got[1, 2], fixed_aspect_ratio_submatrices(matrices[1, 2]))
    got.zero_()
    torch.testing.assert_close(matrices, before)


def test_gradient_flows_back_to_every_entry_as_often_as_it_is_seen():
    matrix = torch.randn(5, 3, requires_grad=True)
    fixed_aspect_ratio_submatrices(matrix).sum().backward()
    torch.testing.assert_close(matrix.grad[:, 0], torch.tensor([1.0, 1.0, 2.0, 1.0, 1.0]))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        # (300 - 100) // 8 = 25, (500 - 100) // 8 = 50: nine of each, the last flush
        ((300, 500, 1.0, 100, 9), Windows(100, 100, tuple(range(0, 201, 25)), tuple(range(0, 401, 50)))),
        # (103 - 100) // 8 = 0 -> 1: starts 0, 1, 2, 3; (109 - 75) // 8 = 4: nine, the last ends at 107 of 109
        ((103, 109, 0.75, 100, 9), Windows(100, 75, (0, 1, 2, 3), tuple(range(0, 33, 4)))),
        ((100, 150, 1.5, 100, 9), Windows(100, 150, (0,), (0,))),
        ((120, 130, 1.0, 100, 1), Windows(100, 100, (0,), (0,))),
        # larger than the smaller dimension: clamped to it; (500 - 90) // 8 = 51
        ((90, 500, 1.0, 100, 9), Windows(90, 90, (0,), tuple(range(0, 409, 51)), shrunk=True)),
        ((90, 500, 0.5, 100, 9), Windows(90, 45, (0,), tuple(range(0, 449, 56)), shrunk=True)),
        ((120, 60, 0.5, 100, 3), Windows(100, 50, (0, 10, 20), (0, 5, 10))),  # fits, though 100 > 60
        ((32, 64, 2.0, 48, 3), Windows(32, 64, (0,), (0,), shrunk=True)),
    ],
)
def test_official_linear_windows(arguments, expected):
    assert official_linear_windows(*arguments) == expected


@pytest.mark.parametrize("arguments", [(100, 149, 1.5, 100, 9), (500, 99, 1.5, 100, 9), (9, 3, 0.3, 100, 9)])
def test_official_linear_windows_refuse_what_the_program_gets_wrong(arguments):
    with pytest.raises(ValueError, match="use a smaller `window`, or compat=None"):
        official_linear_windows(*arguments)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((130, 64, 1.0), Windows(64, 64, (0, 64), (0,))),
        ((130, 64, 0.75), Windows(64, 48, (0, 64), (0,))),
        ((130, 64, 2.0), Windows(32, 64, (0, 32), (0,))),  # floor(130 / 64) blocks, though four would fit
        ((3, 3, 8.0), Windows(1, 3, (0,), (0,))),
    ],
)
def test_official_convolution_windows(arguments, expected):
    assert official_convolution_windows(*arguments) == expected


def test_official_convolution_windows_reject():
    with pytest.raises(ValueError, match="`rows` to be at least `columns`, but got 3 < 4"):
        official_convolution_windows(3, 4, 1.0)
    with pytest.raises(ValueError, match="`aspect_ratio` to leave a column of 3, but got"):
        official_convolution_windows(3, 3, 0.1)


@pytest.mark.parametrize("ratio", [0.0, -1.0, float("nan"), float("inf")])
def test_rejects_ratio(ratio):
    with pytest.raises(
        ValueError, match=re.escape(f"Expected argument `aspect_ratio` to be a positive number, but got {ratio}.")
    ):
        window_grid(4, 4, ratio)


@pytest.mark.parametrize("value", [0, -3, 2.0, "4"])
@pytest.mark.parametrize("name", ["window", "steps"])
def test_rejects_window_and_steps(name, value):
    with pytest.raises(ValueError, match=f"Expected argument `{name}` to be None or a positive integer, but got"):
        fixed_aspect_ratio_submatrices(torch.zeros(4, 4), **{name: value})


def test_rejects_what_is_no_matrix():
    with pytest.raises(ValueError, match="`matrix` to have at least 2 dimensions, but got 1"):
        fixed_aspect_ratio_submatrices(torch.zeros(4))
    with pytest.raises(ValueError, match="matrix of at least 1 x 1, but got 0 x 4"):
        fixed_aspect_ratio_submatrices(torch.zeros(0, 4))


def test_slice_windows_order_is_rows_slowest():
    matrix = torch.arange(16).reshape(4, 4)
    corners = slice_windows(matrix, Windows(2, 2, (0, 2), (0, 2)))[:, 0, 0]
    assert corners.tolist() == [0, 2, 8, 10]


SIZES = st.integers(1, 300)
ANY_RATIO = st.floats(0.01, 100.0)


def mask_of(grid, rows, columns):
    mask = np.zeros((rows, columns), dtype=bool)
    for r in grid.row_starts:
        for c in grid.column_starts:
            window = mask[r : r + grid.height, c : c + grid.width]
            assert window.shape == (grid.height, grid.width)
            window[:] = True
    return mask


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 120), st.integers(1, 120), ANY_RATIO)
@example(1, 1, 0.01)
@example(1, 120, 100.0)
@example(7, 5, 0.1)
def test_default_grid_covers_any_matrix(rows, columns, ratio):
    grid = window_grid(rows, columns, ratio)
    assert mask_of(grid, rows, columns).all()
    assert grid.coverage(rows, columns) == 1.0
    assert not grid.shrunk
    for starts, window, size in zip(grid[2:4], grid[:2], (rows, columns), strict=True):
        assert starts[0] == 0
        assert starts[-1] + window == size
        assert len(starts) == -(-size // window)


@settings(max_examples=150, deadline=None)
@given(SIZES, SIZES, ANY_RATIO, st.integers(1, 400), st.one_of(st.none(), st.integers(1, 20)))
@example(10, 11, 1.05, 10, None)
@example(2, 1, 100.0, 400, 20)
def test_any_grid_lies_in_the_matrix_and_holds_its_ratio(rows, columns, ratio, window, steps):
    grid = window_grid(rows, columns, ratio, window, steps)
    assert 1 <= grid.height <= rows
    assert 1 <= grid.width <= columns
    assert grid.shrunk or grid.height == window
    # within the rounding of both sides, or a side of 1 that there must be
    assert 1 in grid[:2] or abs(grid.width - grid.height * ratio) <= 0.5 + 0.5 * ratio + 1e-9
    for starts, side, size in zip(grid[2:4], grid[:2], (rows, columns), strict=True):
        assert list(starts) == sorted(set(starts))
        assert all(0 <= start <= size - side for start in starts)
        assert len(starts) == (-(-size // side) if steps is None else min(steps, size - side + 1))
        assert len(starts) == 1 or (starts[0] == 0 and starts[-1] + side == size)


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 60), st.integers(1, 60), st.floats(0.2, 5.0), st.integers(1, 80), st.integers(1, 9))
def test_coverage_is_the_share_of_a_mask(rows, columns, ratio, window, steps):
    grid = window_grid(rows, columns, ratio, window, steps)
    assert grid.coverage(rows, columns) == pytest.approx(mask_of(grid, rows, columns).mean(), rel=1e-12)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 40), st.integers(0, 40), st.floats(0.2, 2.0), st.integers(5, 20), st.integers(1, 9))
def test_coverage_of_the_authors_windows_is_the_share_of_a_mask(more_rows, more_columns, ratio, window, steps):
    rows, columns = window + more_rows, int(window * ratio) + more_columns
    grid = official_linear_windows(rows, columns, ratio, window, steps)
    assert grid.coverage(rows, columns) == pytest.approx(mask_of(grid, rows, columns).mean(), rel=1e-12)


@pytest.mark.parametrize(
    ("grid", "shape", "expected"),
    [
        (Windows(4, 4, (0,), (0,)), (4, 4), 1.0),
        (Windows(4, 4, (0, 2, 6), (0,)), (10, 4), 1.0),
        (Windows(4, 4, (0, 5), (0,)), (10, 4), 0.8),
        (Windows(4, 4, (0, 2, 2), (0,)), (10, 4), 0.6),  # the authors' last window may repeat the one before
        (Windows(2, 3, (0, 4), (0, 5)), (8, 9), 24 / 72),
        (official_convolution_windows(130, 64, 1.0), (130, 64), 128 / 130),
    ],
)
def test_coverage_by_hand(grid, shape, expected):
    assert grid.coverage(*shape) == pytest.approx(expected, rel=1e-15)
