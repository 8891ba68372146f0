"""What a user's style, font, notebook and eyes do to the figures: nothing."""

import itertools
import json
import pickle
import subprocess
import sys
import warnings

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from lightning_farms import LayerSpectrum, SpectralReport
from lightning_farms.plotting import (
    alpha_depth_figure,
    comparison_figure,
    error_curves_figure,
    esd_figure,
    field_figure,
    layer_heatmap_figure,
    pixels,
    shape_heatmap_figure,
    sparsity_figure,
    xmin_scan_figure,
)

ALPHAS = {"conv": 2.0, "fc": 2.5}
FIELD = np.add.outer(np.linspace(0, 1, 8), np.linspace(0, 1, 8))[..., None]
EIGENVALUES = np.geomspace(0.1, 9, 40)
MANY = {"network." + "block." * 3 + f"{i}": 2 + 0.4 * np.sin(i) for i in range(500)}
FIGURES = {
    "alpha over depth": lambda: alpha_depth_figure(ALPHAS, before={"fc": 3.0}, intervals={"fc": (2.25, 2.75)}),
    "comparison": lambda: comparison_figure(ALPHAS, {"conv": 2.25, "fc": 2.0}),
    "errors": lambda: error_curves_figure([[0.1, 0.3], [0.2, 0.5]], channels=["a", "b"], positions=[1, 2]),
    "esd": lambda: esd_figure(EIGENVALUES, alpha=2.0, xmin=1.0, ks_distance=0.1, title="fc", mp_edges=(0.0, 4.0)),
    "fields": lambda: field_figure(FIELD, 1.5 * FIELD, frames=["frame 10"]),
    "heat map": lambda: layer_heatmap_figure([[1, 2], [3, 4]], layers=["a", "b"], epochs=[0, 1], title="t", label="l"),
    "shapes": lambda: shape_heatmap_figure({"conv": (9, 9), "fc": (8, 9)}, ALPHAS),
    "sparsity": lambda: sparsity_figure({"a": {"1": 0.5, "2": 0.7}, "b": {"1": 0.6, "2": 0.6}}, sparsity=0.6),
    "xmin scan": lambda: xmin_scan_figure(EIGENVALUES, title="fc"),
}
STYLES = {
    "dark": ["dark_background"],
    "large": [{"font.size": 22, "font.weight": "bold", "xtick.labelsize": 20, "figure.dpi": 300, "axes.grid": True}],
    "tight": [{"figure.autolayout": True}],
    "constrained": [{"figure.constrained_layout.use": True}],
    "odd": [{"image.origin": "lower", "axes.prop_cycle": matplotlib.cycler(color=["k"]), "ytick.left": False}],
}


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("kind", FIGURES)
def test_a_style_changes_no_pixel(kind, style):
    from matplotlib import style as styles

    expected = pixels(FIGURES[kind]())
    with styles.context(STYLES[style]), warnings.catch_warnings():
        warnings.simplefilter("error")
        np.testing.assert_array_equal(pixels(FIGURES[kind]()), expected)


def test_the_users_font_is_kept_as_it_may_have_the_letters_of_names():
    expected = pixels(FIGURES["heat map"]())
    with matplotlib.rc_context({"font.family": "DejaVu Serif"}):
        assert (pixels(FIGURES["heat map"]()) != expected).any()


def test_a_letter_that_the_font_lacks_is_no_warning(tmp_path):
    report = SpectralReport([LayerSpectrum("编码器.层", "linear", (8, 8), alpha=2.0)])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pixels(report.plot(title="编码器"))
        report.plot().savefig(tmp_path / "figure.pdf", bbox_inches="tight")


NOTEBOOK = """
import json, sys
from IPython.core.formatters import DisplayFormatter
from lightning_farms.plotting import alpha_depth_figure
print(json.dumps([*DisplayFormatter().format(alpha_depth_figure({"fc": 2.0}))[0], "matplotlib.pyplot" in sys.modules]))
"""


def test_it_is_shown_without_pyplot():
    figure = FIGURES["alpha over depth"]()
    assert figure._repr_png_()[:4] == b"\x89PNG"
    pytest.importorskip("IPython")
    result = subprocess.run([sys.executable, "-c", NOTEBOOK], capture_output=True, text=True, check=True)
    assert json.loads(result.stdout) == ["text/plain", "image/png", False]


@pytest.mark.parametrize("kind", FIGURES)
def test_it_can_be_pickled(kind):
    figure = FIGURES[kind]()
    np.testing.assert_array_equal(pixels(pickle.loads(pickle.dumps(figure))), pixels(figure))


def boxes(figure):
    """The extents of all tick labels, and of the axes' names, that are seen."""
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    for axis in (axis for axes in figure.axes if axes.axison for axis in (axes.xaxis, axes.yaxis)):
        low, high = sorted(axis.get_view_interval())
        ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        shown = [tick for tick in ticks if low <= tick.get_loc() <= high and tick.label1.get_text()]
        yield axis, [tick.label1.get_window_extent(renderer) for tick in shown if tick.label1.get_visible()]


NARROW = {
    "equal": [1.0],
    "nearly equal": 1 + 0.01 * np.linspace(0, 1, 300) ** 2,
    "within a decade": np.geomspace(0.08, 1.3, 16),
    "tiny": 1e-30 * np.geomspace(1, 3, 16),
    "wide": np.geomspace(1e-9, 1e9, 300),
}


@pytest.mark.parametrize("draw", [
    *(lambda values=values: esd_figure(values, alpha=2.0, xmin=values[0], ks_distance=0.1, title="t")
      for values in NARROW.values()),
    lambda: comparison_figure({"a": 2.1, "b": 2.0}, {"a": 2.0, "b": 1.95}),
    lambda: comparison_figure({"a": 2.0}, {"a": np.nan}),
    lambda: alpha_depth_figure({"net.0": np.nan}, before={"net.0": 2.0951, "net.6": 2.25}),
    lambda: alpha_depth_figure({"net.0": 2.0951, "net.2": 2.2525, "orthogonal": 834.2}),
    lambda: alpha_depth_figure(MANY),
    lambda: field_figure(np.ones((64, 8, 5)), np.ones((64, 8, 5)), frames=list("abcde")),
])  # fmt: skip
def test_tick_labels_are_within_the_figure_and_apart(draw):
    figure = draw()
    for axis, extents in boxes(figure):
        extents.sort(key=lambda box: (box.x0, box.y0) if axis.axis_name == "x" else (box.y0, box.x0))
        assert all(figure.bbox.x0 <= box.x0 and box.x1 <= figure.bbox.x1 for box in extents)
        assert all(not one.overlaps(next_) for one, next_ in itertools.pairwise(extents))
        name = axis.label.get_window_extent()
        assert not axis.label.get_text() or not any(name.overlaps(box) for box in extents)


def test_one_layer_far_beyond_the_others_does_not_press_them_together():
    axes = alpha_depth_figure({"a": 2.0, "b": 3.0, "orthogonal": 834.0}).axes[0]
    near, far = (axes.transAxes.inverted().transform(axes.transData.transform((x, 0)))[0] for x in (2.0, 3.0))
    assert far - near > 0.05
    assert alpha_depth_figure({"a": 2.0, "b": 3.0}).axes[0].get_xscale() == "linear"


def test_curves_differ_without_colours():
    errors = error_curves_figure(np.ones((2, 4)), channels=list("abcd"), positions=[0, 1]).axes[0]
    assert len({(line.get_marker(), line.get_linestyle(), line.get_linewidth()) for line in errors.lines}) == 5
    ratios = {name: {"0": 0.5} for name in "abc"}
    steps = sparsity_figure(ratios, sparsity=0.4).axes[0]
    assert len({patch.get_linestyle() for patch in steps.patches}) == 3


@pytest.mark.parametrize("rows", [1, 40, 240])
@pytest.mark.parametrize("columns", [1, 3, 120])
def test_the_small_map_is_hardly_higher_than_wide(rows, columns):
    from lightning_farms.plotting import layer_heatmap_image

    _, height, width = layer_heatmap_image(np.ones((rows, columns))).shape
    assert height < 1.02 * width
