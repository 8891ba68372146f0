"""Ratios of blocks: bars or steps, names of blocks, legend, and what is refused."""

import itertools
import math

import numpy as np
import pytest

from lightning_farms.plotting import pixels, sparsity_figure

FARMS = {f"model.layers.{block}": 0.5 + block / 100 for block in range(12)}


def ticks(figure):
    labels = (label.get_text() for label in figure.axes[0].get_xticklabels())
    return dict(zip(figure.axes[0].get_xticks().tolist(), labels, strict=True))


def texts(figure):
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_one_allocation_is_bars():
    figure = sparsity_figure({"FARMS": FARMS}, sparsity=0.55, title="a $model_")
    axes = figure.axes[0]
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], list(FARMS.values()))
    np.testing.assert_allclose([bar.get_x() + bar.get_width() / 2 for bar in axes.patches], range(12))
    assert ticks(figure) == {float(block): str(block) for block in range(12)}
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("model.layers", "pruned", "a $model_")
    assert axes.lines[0].get_ydata() == [0.55, 0.55]
    assert sorted(texts(figure)) == ["FARMS", "all 0.55"]


def test_several_are_steps_over_each_other():
    other = {"model.layers.2": 0.9, "model.layers.0": 0.1, "model.layers.1": math.nan, "model.extra.0": 1.0}
    figure = sparsity_figure({"FARMS": FARMS, "p$_0$": other})
    first, second = (patch.get_data() for patch in figure.axes[0].patches)
    np.testing.assert_allclose(first.values, [*FARMS.values(), math.nan])
    np.testing.assert_allclose(second.values, [0.1, math.nan, 0.9, *[math.nan] * 9, 1.0])
    np.testing.assert_allclose(second.edges, np.arange(14) - 0.5)
    assert texts(figure) == ["FARMS", r"p\$_0\$"]  # text, not mathematics
    assert not figure.axes[0].lines
    assert ticks(figure)[12.0] == "extra.0"
    assert figure.axes[0].get_xlabel() == "model"


@pytest.mark.parametrize(("names", "axis"), [(["fc"], "block"), (["conv1", "fc"], "block"), (["a.b", "a.c.d"], "a")])
def test_what_blocks_have_in_common_names_the_axis(names, axis):
    figure = sparsity_figure({"uniform": dict.fromkeys(names, 0.5)})
    assert figure.axes[0].get_xlabel() == axis
    assert list(ticks(figure).values()) == [name.removeprefix("a.") for name in names]


def test_many_blocks_and_allocations_fit():
    names = [f"transformer.h.{block}.attention.projection" for block in range(96)]
    allocations = {f"an allocation with a long name {i}": dict.fromkeys(names, 0.3 + i / 50) for i in range(24)}
    figure = sparsity_figure(allocations, sparsity=0.7)
    drawn = pixels(figure)
    legend, axes = figure.legends[0].get_window_extent(), figure.axes[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1
    assert legend.y1 <= figure.axes[0].xaxis.label.get_window_extent().y0
    assert axes.x1 <= drawn.shape[1]
    labels = [label.get_window_extent() for label in figure.axes[0].get_xticklabels()]
    assert len(labels) > 4
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(labels))
    styles = {(patch.get_edgecolor(), patch.get_linestyle()) for patch in figure.axes[0].patches}
    assert len(styles) == 24


@pytest.mark.parametrize(
    ("allocations", "message"),
    [
        ({}, "at least one block's ratio"),
        ({"FARMS": {}}, "at least one block's ratio"),
        ({"FARMS": {"a": 1.01}}, r"ratios in \[0, 1\], but got 1.01"),
        ({"FARMS": {"a": 0.5}, "OWL": {"a": -0.5}}, r"ratios in \[0, 1\], but got -0.5"),
    ],
)
def test_mistakes(allocations, message):
    with pytest.raises(ValueError, match=message):
        sparsity_figure(allocations)
