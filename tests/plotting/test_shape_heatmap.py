import math

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from scipy import stats

from lightning_farms.plotting import shape_heatmap_figure

SHAPES = {"a": (64, 32), "b": (64, 32), "c": (32, 32), "d": (128, 16), "e": (32, 16)}
ALPHAS = {"a": 3.0, "b": 4.0, "c": 2.0, "d": math.nan, "other": 9.0}


def cells(figure):
    """{(rows' label, columns' label): text in the cell}."""
    axes = figure.axes[0]
    columns, rows = ([label.get_text() for label in get()] for get in (axes.get_xticklabels, axes.get_yticklabels))
    return {
        (rows[int(text.get_position()[1])], columns[int(text.get_position()[0])]): text.get_text()
        for text in axes.texts
    }


def test_means_and_numbers_of_layers_by_size():
    figure = shape_heatmap_figure(SHAPES, ALPHAS, title="MLP")
    assert cells(figure) == {
        ("64", "32"): "3.50\n×2",
        ("32", "32"): "2.00\n×1",
        ("128", "16"): "–\n×1",
        ("32", "16"): "–\n×1",
    }
    image = figure.axes[0].images[0].get_array().filled(np.nan)
    np.testing.assert_array_equal(image, [[math.nan, 2.0], [math.nan, 3.5], [math.nan, math.nan]])
    assert len(figure.axes[0].patches) == 2  # grey cells
    assert figure.get_suptitle() == "MLP"


@pytest.mark.parametrize(("alphas", "expected"), [((2.0, 2.1), (1.9, 2.2)), ((2.0, 3.0), (2.0, 3.0))])
def test_colours_of_an_even_network_are_even(alphas, expected):
    figure = shape_heatmap_figure({"a": (64, 32), "b": (32, 32)}, dict(zip("ab", alphas, strict=True)))
    assert figure.axes[0].images[0].get_clim() == pytest.approx(expected)


def test_many_sizes_are_gathered_by_powers_of_two():
    shapes = {f"layer{size}": (size, 7) for size in (1, 2, 3, 4, 7, 8, 15, 16, 31, 32, 63, 64, 100)}
    got = cells(shape_heatmap_figure(shapes, dict.fromkeys(shapes, 2.0)))
    assert {row: text.split("×")[1] for (row, _), text in got.items()} == {
        "1": "1", "2–3": "2", "4–7": "2", "8–15": "2", "16–31": "2", "32–63": "2", "64–127": "2"
    }  # fmt: skip
    assert {column for _, column in got} == {"7"}


def test_correlation_is_scipys():
    random = np.random.RandomState(0)
    shapes = {f"layer{i}": tuple(random.choice([16, 64, 256], 2).tolist()) for i in range(30)}
    alphas = {name: random.uniform(2, 4) for name in shapes}
    aspects = [abs(math.log2(m / n)) for m, n in shapes.values()]
    expected = stats.pearsonr(aspects, list(alphas.values())).statistic
    text = shape_heatmap_figure(shapes, {**alphas, "no such layer": 1.0}).get_supxlabel()
    assert text.endswith(f"over 30 layers: {expected:+.2f}")


@pytest.mark.parametrize(
    ("shapes", "alphas"),
    [
        ({"a": (3, 4)}, {"a": 2.0}),
        ({"a": (3, 4)}, {}),
        ({"a": (3, 4), "b": (4, 4), "c": (5, 4)}, dict.fromkeys("abc", 2.0)),
        ({"a": (4, 4), "b": (8, 8), "c": (2, 2)}, {"a": 1.0, "b": 2.0, "c": 3.0}),
    ],
)
def test_without_a_correlation(shapes, alphas):
    figure = shape_heatmap_figure(shapes, alphas)
    FigureCanvasAgg(figure).draw()
    assert figure.get_supxlabel().endswith("not defined for these layers")


@pytest.mark.parametrize("count", [1, 5, 40, 300])
def test_nothing_is_clipped_or_overlaps(count):
    random = np.random.RandomState(1)
    shapes = {f"layer{i}": tuple((2 ** random.uniform(3, 15, 2)).astype(int).tolist()) for i in range(count)}
    figure = shape_heatmap_figure(shapes, {name: random.uniform(2, 6) for name in shapes}, title="x" * 80)
    FigureCanvasAgg(figure).draw()
    axes, bar = figure.axes
    labels = [label.get_window_extent() for label in axes.get_yticklabels() + axes.get_xticklabels()]
    items = (figure._suptitle, axes.xaxis.label, axes.yaxis.label, bar.yaxis.label)
    boxes = labels + [item.get_window_extent() for item in items]
    width, height = figure.bbox.width, figure.bbox.height
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    assert width <= 1500
    assert height <= 1300
    texts = [text.get_window_extent() for text in axes.texts]
    assert not any(one.overlaps(other) for i, one in enumerate(texts) for other in texts[:i])


def test_wrong_shapes():
    with pytest.raises(ValueError, match="`shapes` to have at least one layer, but got none"):
        shape_heatmap_figure({}, {})
    for shape in ((3,), (3, 0), (3, 3, 3)):
        with pytest.raises(ValueError, match=r"`shapes` to be two sizes of at least 1 a layer, but got .* for 'fc'"):
            shape_heatmap_figure({"fc": shape}, {})
