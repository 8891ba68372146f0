import math
import subprocess
import sys

import numpy as np
import pytest

from lightning_farms.plotting import alpha_depth_figure


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


def test_no_layer():
    with pytest.raises(ValueError, match="`alphas` to be at least one layer's alpha, but got none"):
        alpha_depth_figure({})


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
