import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties

from lightning_farms.plotting._margins import Margins, add_axes, name_axes, widest


@pytest.mark.parametrize("size", [6, 9, 12])
@pytest.mark.parametrize("text", ["i", "network.blocks.10.filter.w1", "WWWWWWWWWWWWWWWWWWWW", "a…b_é$x$"])
def test_width_is_just_above_what_the_renderer_measures(text, size):
    dpi = 110
    renderer = FigureCanvasAgg(Figure(dpi=dpi)).get_renderer()
    measured = renderer.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)[0] / dpi
    assert measured <= widest([text], size) + 1 / dpi
    assert widest([text], size) <= 1.2 * measured + 4 / dpi


def test_widest_of_several_and_of_none():
    assert widest(["a", "aaaa", "aa"], 9) == pytest.approx(4 * widest(["a"], 9))
    assert widest([], 9) == 0.0
    assert widest(["\u6df1"], 72) == pytest.approx(1.04)  # not in the font: as wide as high


def test_axes_and_their_names_are_where_the_margins_say():
    figure = Figure(figsize=(6, 4), dpi=100)
    margins = Margins(left=1.0, right=0.5, bottom=1.2, top=0.4)
    axes = add_axes(figure, margins)
    name_axes(axes, margins, title="$x", horizontal="epoch", vertical="layer", legend=0.3)
    FigureCanvasAgg(figure).draw()
    assert axes.bbox.bounds == pytest.approx((100, 120, 450, 240))
    below, beside = axes.xaxis.label.get_window_extent(), axes.yaxis.label.get_window_extent()
    assert 30 <= below.y0 <= 45
    assert 0 <= beside.x0 <= 10
    assert axes.title.get_window_extent().y1 <= 400
    assert axes.get_title() == "$x"


@pytest.mark.parametrize("title", ["short", "a title that is wider than the axes, but not than the figure"])
def test_a_title_is_within_the_figure(title):
    figure = Figure(figsize=(6, 4), dpi=100)
    margins = Margins(left=3.5, right=0.2, bottom=1.2, top=0.4)
    axes = add_axes(figure, margins)
    name_axes(axes, margins, title=title, horizontal="epoch", vertical="layer")
    FigureCanvasAgg(figure).draw()
    box = axes.title.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= 600
    if title == "short":
        assert (box.x0 + box.x1) / 2 == pytest.approx(350 + 230 / 2, abs=1)
