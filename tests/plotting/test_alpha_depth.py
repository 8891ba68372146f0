import itertools
import math
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import LineCollection

from lightning_farms.plotting import alpha_depth_figure, comparison_figure


def test_marks_lie_at_the_alphas():
    figure = alpha_depth_figure(
        {"conv": 2.0, "mid": math.nan, "fc": 4.0}, before={"conv": 2.5, "fc": 3.0, "gone": 9.0}, title="ResNet"
    )
    axes = figure.axes[0]
    before, now = (item.get_offsets().filled(np.nan) for item in axes.collections[1:])
    np.testing.assert_array_equal(now, [[2.0, 0], [math.nan, math.nan], [4.0, 2]])
    np.testing.assert_array_equal(before, [[2.5, 0], [math.nan, math.nan], [3.0, 2]])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["conv", "mid", "fc"]
    assert axes.get_ylim()[0] > axes.get_ylim()[1]  # the first layer is at the top
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["before", "now", "mean 3.00"]
    assert axes.get_title() == "ResNet"


@pytest.mark.parametrize("count", [1, 100])
def test_sizes(count):
    figure = alpha_depth_figure({f"layer{i}": 2.0 + i for i in range(count)})
    assert 300 <= figure.bbox.height <= 1300
    assert len(figure.axes[0].get_yticks()) <= 60
    figure.savefig("/dev/null", format="png")


def test_without_a_finite_alpha_there_is_no_mean():
    figure = alpha_depth_figure({"conv": math.nan})
    assert not figure.axes[0].get_lines()


def segments(axes):
    """{row: (left end, right end)} of the horizontal lines."""
    collection = next(item for item in axes.collections if isinstance(item, LineCollection))
    return {int(line[0][1]): tuple(line[:, 0]) for line in collection.get_segments() if line.size}


def test_intervals_lie_around_the_alphas():
    figure = alpha_depth_figure(
        {"conv": 2.0, "mid": 3.0, "fc": 4.0},
        intervals={"conv": (1.8, 2.3), "fc": (math.nan, math.nan), "gone": (0.0, 1.0)},
    )
    assert segments(figure.axes[0]) == {0: (1.8, 2.3)}
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["interval", r"$\alpha$", "mean 3.00"]


def test_comparison_shows_both_and_the_difference():
    figure = comparison_figure(
        {"old": 5.0, "conv": 2.5, "fc": 3.0, "mid": 2.0},
        {"conv": 2.0, "new": 2.2, "mid": math.nan, "fc": 4.0},
        labels=("base", "tuned"),
        title="MLP",
    )
    axes, beside = figure.axes
    names = ["conv", "new", "mid", "fc", "old"]
    assert [label.get_text() for label in axes.get_yticklabels()] == names
    earlier, now = (item.get_offsets().filled(np.nan)[:, 0] for item in axes.collections[1:])
    np.testing.assert_array_equal(earlier, [2.5, math.nan, 2.0, 3.0, 5.0])
    np.testing.assert_array_equal(now, [2.0, 2.2, math.nan, 4.0, math.nan])
    assert segments(axes) == {0: (2.5, 2.0), 3: (3.0, 4.0)}
    bars = {round(bar.get_y() + bar.get_height() / 2): bar.get_width() for bar in beside.patches}
    assert bars == {0: -0.5, 3: 1.0}
    assert beside.get_xlabel() == r"$\Delta\alpha$, mean +0.25"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["base", "tuned", "mean 2.73"]
    assert figure.get_suptitle() == "MLP"


def test_comparison_without_a_common_layer_has_no_difference():
    figure = comparison_figure({"a": 2.0}, {"b": 3.0})
    assert not figure.axes[1].patches
    assert figure.axes[1].get_xlabel() == r"$\Delta\alpha$"


@pytest.mark.parametrize("count", [1, 5, 40, 300])
@pytest.mark.parametrize("draw", [alpha_depth_figure, lambda alphas: comparison_figure(alphas, alphas)])
def test_labels_fit_and_nothing_is_clipped(draw, count):
    figure = draw({f"model.layers.{i}.self_attention.query_projection": 2.0 + i / count for i in range(count)})
    FigureCanvasAgg(figure).draw()
    boxes = [label.get_window_extent() for label in figure.axes[0].get_yticklabels()]
    assert all(upper.y0 >= lower.y1 for upper, lower in itertools.pairwise(boxes))
    boxes += [axes.xaxis.label.get_window_extent() for axes in figure.axes]
    boxes.append(figure.legends[0].get_window_extent())
    width, height = figure.bbox.width, figure.bbox.height
    assert all(box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height for box in boxes)
    marks = figure.axes[0].collections[-1].get_sizes()[0] ** 0.5 / 72 * figure.dpi
    row = figure.axes[0].bbox.height / count
    assert marks < max(row, 4)  # of neighbouring rows, marks stay apart


def test_no_layer():
    with pytest.raises(ValueError, match="`alphas` to be at least one layer's alpha, but got none"):
        alpha_depth_figure({})


def test_no_layer_to_compare():
    with pytest.raises(ValueError, match="to have at least one layer's alpha, but got none"):
        comparison_figure({}, {})


def test_matplotlib_is_imported_late_and_pyplot_never():
    program = """
import sys
import lightning_farms.plotting as p
assert not any(m.split(".")[0] == "matplotlib" for m in sys.modules), "matplotlib at import"
p.log_histogram([1.0, 2.0])
assert "matplotlib" not in sys.modules, "matplotlib for a histogram"
p.layer_heatmap_image([[1.0]])
p.layer_heatmap_figure([[1.0]], layers=["a"], epochs=[0], title="t", label="l").savefig("/dev/null", format="png")
p.esd_figure([1.0, 2.0], alpha=2.0, xmin=1.0, ks_distance=0.1, title="t").savefig("/dev/null", format="png")
p.alpha_depth_figure({"a": 2.0}).savefig("/dev/null", format="png")
p.comparison_figure({"a": 2.0}, {"a": 3.0}).savefig("/dev/null", format="png")
p.shape_heatmap_figure({"a": (2, 3)}, {"a": 3.0}).savefig("/dev/null", format="png")
assert "matplotlib.pyplot" not in sys.modules, "pyplot"
"""
    # the package's own __init__ may import lightning, which may import matplotlib: load this folder alone
    bare = (
        "import importlib.util, sys, types\n"
        "spec = importlib.util.find_spec('lightning_farms')\n"
        "package = types.ModuleType('lightning_farms')\n"
        "package.__path__ = list(spec.submodule_search_locations)\n"
        "sys.modules['lightning_farms'] = package\n"
    )
    done = subprocess.run([sys.executable, "-c", bare + program], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_a_long_file_name_keeps_its_ends_in_the_legend():
    labels = (f"epoch=12-step=34567-{'metric' * 9}=0.1234.ckpt", "other.ckpt")
    texts = [
        text.get_text() for text in comparison_figure({"a": 2.0}, {"a": 2.1}, labels=labels).legends[0].get_texts()
    ]
    assert texts[0].startswith("epoch=12-step=")
    assert texts[0].endswith("0.1234.ckpt")
    assert len(texts[0]) <= 40
