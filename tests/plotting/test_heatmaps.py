import itertools

import matplotlib
import numpy as np
import pytest
import torch

from lightning_farms.plotting import layer_heatmap_figure, layer_heatmap_image

NAN = float("nan")
GREY = [191, 191, 191]


def draw(values, **options):
    cells = np.asarray(values)
    names = dict(layers=[f"layer{i}" for i in range(len(cells))], epochs=list(range(cells.shape[1])))
    return layer_heatmap_figure(values, **names, title="alpha of every layer", label="alpha", **options)


def pixels(figure):
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3]


def viridis(share):
    return list(matplotlib.colormaps["viridis"](share, bytes=True)[:3])


@pytest.mark.parametrize(
    ("layers", "epochs", "unit"),
    [(1, 1, "epoch"), (2, 13, "step"), (5, 3, "epoch"), (60, 30, "step"), (200, 200, "epoch")],
)
def test_labels_fit_and_nothing_is_clipped(layers, epochs, unit):
    names = [f"model.layers.{i}.self_attention.query_projection" for i in range(layers)]
    figure = layer_heatmap_figure(
        np.random.RandomState(0).uniform(2, 4, (layers, epochs)),
        layers=names,
        epochs=[(10 + i) * (1 if unit == "epoch" else 12345) for i in range(epochs)],
        unit=unit,
        title="alpha",
        label="PL_Alpha_Hill",
    )
    pixels(figure)  # lays the figure out
    axes, bar = figure.axes
    assert (axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()) == (unit, "layer", "PL_Alpha_Hill")
    boxes = [label.get_window_extent() for label in axes.get_yticklabels()]
    assert boxes[0].y0 > boxes[-1].y0 or layers == 1  # the first layer is at the top
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
    columns = [label.get_window_extent() for label in axes.get_xticklabels()]
    assert all(right.x0 - left.x1 > 3 for left, right in itertools.pairwise(columns))
    named = axes.yaxis.label.get_window_extent()
    assert all(box.x0 >= named.x1 for box in boxes)
    low, high = bar.get_ylim()
    ticks = [label for label in bar.get_yticklabels() if low <= label.get_position()[1] <= high]  # others are not drawn
    assert len(ticks) >= 3
    assert all(label.get_window_extent().x1 < bar.yaxis.label.get_window_extent().x0 for label in ticks)
    boxes += [label.get_window_extent() for label in axes.get_xticklabels() + ticks]
    boxes += [item.get_window_extent() for item in (axes.title, axes.xaxis.label, axes.yaxis.label, bar.yaxis.label)]
    width, height = figure.bbox.width, figure.bbox.height
    assert all(b.x0 >= 0 and b.y0 >= 0 and b.x1 <= width and b.y1 <= height for b in boxes)
    assert width <= 1500
    assert height <= 1300
    if layers == 5:
        assert [label.get_text() for label in axes.get_xticklabels()] == ["10", "11", "12"]
        assert [label.get_text()[:15] for label in axes.get_yticklabels()] == [f"model.layers.{i}." for i in range(5)]


@pytest.mark.parametrize("high", [3e-4, 9e-1])
def test_labels_of_a_logarithmic_bar_fit(high):
    figure = draw([[1e-4, high], [2e-4, 3e-4]], logarithmic=True)
    pixels(figure)
    bar = figure.axes[1]
    name = bar.yaxis.label.get_window_extent()
    labels = [tick.label2 for tick in bar.yaxis.get_major_ticks() + bar.yaxis.get_minor_ticks()]
    shown = [label.get_window_extent() for label in labels if label.get_text()]
    assert len(shown) >= 2
    assert all(box.x1 < name.x0 for box in shown)
    assert name.x1 <= figure.bbox.width


def test_missing_cells_are_grey_and_explained():
    complete, missing = draw([[1.0, 2.0], [3.0, 4.0]]), draw([[1.0, NAN], [3.0, 4.0]])
    assert not complete.legends
    assert [text.get_text() for text in missing.legends[0].get_texts()] == ["no value"]

    def colour(figure, column, row):
        image = pixels(figure)
        x, y = figure.axes[0].transData.transform((column, row))
        return image[image.shape[0] - 1 - int(y), int(x)].tolist()

    assert colour(missing, 1, 0) == GREY
    assert colour(missing, 0, 0) == viridis(0.0)
    assert colour(missing, 1, 1) == viridis(1.0)
    assert colour(complete, 1, 0) == viridis(1 / 3)


@pytest.mark.parametrize(
    ("last", "text"),
    [
        ([0.0, 0.0], "zero"),
        ([NAN, NAN], "no value"),
        ([0.0, NAN], "no value, or none above 0"),
        ([-1.0, 0.0], "no value, or none above 0"),
    ],
)
def test_a_rate_of_zero_is_not_said_to_be_missing(last, text):
    """As at the end of a cosine schedule, or at the beginning of a warm-up."""
    figure = draw([[1e-3, last[0]], [2e-3, last[1]]], logarithmic=True)
    assert figure.legends[0].get_texts()[0].get_text() == text


@pytest.mark.parametrize(
    ("values", "options"),
    [
        ([[NAN, NAN]], {}),
        ([[1.0, 1.0]], {}),
        ([[0.0, 0.0]], {}),
        ([[0.1, 0.1]], {"logarithmic": True}),
        ([[0.0, -1.0]], {"logarithmic": True}),
        ([[1.0, 3.0]], {"vmin": 2.0, "vmax": 2.5}),
    ],
)
def test_degenerate_values_draw(values, options):
    assert pixels(draw(values, **options)).std() > 0
    assert layer_heatmap_image(values, **options).shape == (3, 24, 48)


def test_image_puts_the_first_layer_on_top_in_whole_blocks():
    values = torch.tensor([[2.0, 3.0, 4.0], [NAN, 2.5, float("inf")]])
    image = layer_heatmap_image(values)
    assert image.dtype == np.uint8
    assert image.shape == (3, 48, 72)
    cells = image[:, ::24, ::24]
    np.testing.assert_array_equal(image, cells.repeat(24, axis=1).repeat(24, axis=2))
    expected = [[viridis(0.0), viridis(0.5), viridis(1.0)], [GREY, viridis(0.25), GREY]]
    np.testing.assert_allclose(cells.transpose(1, 2, 0).astype(int), expected, atol=1)


def test_image_on_a_logarithmic_scale():
    image = layer_heatmap_image([[1e-4, 1e-3, 1e-2, 0.0, NAN]], logarithmic=True)
    cells = image[:, 0, ::24].T.tolist()
    np.testing.assert_allclose(cells, [viridis(0.0), viridis(0.5), viridis(1.0), GREY, GREY], atol=3)


def test_image_range_given():
    cells = layer_heatmap_image([[0.0, 1.0, 9.0]], vmin=1.0, vmax=5.0)[:, 0, ::24].T.tolist()
    assert cells == [viridis(0.0), viridis(0.0), viridis(1.0)]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [((100, 60), (300, 480)), ((3, 1), (72, 72)), ((300, 4), (600, 480)), ((400, 300), (800, 600))],
)
def test_image_size(shape, expected):
    assert layer_heatmap_image(np.random.RandomState(0).uniform(size=shape)).shape == (3, *expected)


@pytest.mark.parametrize("function", [draw, layer_heatmap_image])
def test_wrong_values(function):
    with pytest.raises(ValueError, match=r"`values` to have at least one cell, but got shape \(2, 0\)"):
        function(np.zeros((2, 0)))
    with pytest.raises(ValueError, match=r"`vmin` to be below `vmax`, but got 2.0 and 2.0"):
        function([[1.0]], vmin=2.0, vmax=2.0)


def test_wrong_names():
    with pytest.raises(ValueError, match=r"one column an epoch, \(1, 2\), but got shape \(2, 2\)"):
        layer_heatmap_figure(np.ones((2, 2)), layers=["a"], epochs=[0, 1], title="x", label="y")
    with pytest.raises(ValueError, match=r"`values` to have 2 dimension\(s\), but got shape \(3,\)"):
        layer_heatmap_image([1.0, 2.0, 3.0])


def test_input_is_left_alone():
    values = np.array([[1.0, NAN]])
    draw(values)
    layer_heatmap_image(values)
    np.testing.assert_array_equal(values, [[1.0, NAN]])


@pytest.mark.parametrize("logarithmic", [False, True])
def test_rounding_has_no_colours(logarithmic):
    values = 1e-3 * np.array([[1.0, 1.0 + 1e-9], [1.0 - 1e-12, 1.0]])
    image = layer_heatmap_image(values, logarithmic=logarithmic)
    assert len(np.unique(image.reshape(3, -1), axis=1).T) == 1
    figure = layer_heatmap_figure(
        values, layers=["a", "b"], epochs=[0, 1], title="t", label="l", logarithmic=logarithmic
    )
    pixels(figure)
    labels = [label.get_text() for which in ("major", "minor") for label in figure.axes[1].get_yticklabels(which=which)]
    assert len(set(labels) - {""}) == len([label for label in labels if label])
