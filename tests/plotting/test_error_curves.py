"""Errors over frames: lines, axes, legend, and what is refused."""

import numpy as np
import pytest

from lightning_farms.plotting import error_curves_figure, pixels

ERRORS = np.array([[0.01, 0.02], [0.02, 0.06], [0.05, 0.2]])


def curves(figure):
    return {line.get_label(): line.get_ydata() for line in figure.axes[0].lines}


def test_a_line_a_channel_and_their_mean():
    figure = error_curves_figure(ERRORS, channels=["Vx", "p$_0$"], positions=[10, 11, 12], title="now")
    found = curves(figure)
    np.testing.assert_allclose(found["Vx"], ERRORS[:, 0])
    np.testing.assert_allclose(found["mean"], [0.015, 0.04, 0.125])
    assert list(found) == ["Vx", r"p\$_0\$", "mean"]  # text, not mathematics
    axes = figure.axes[0]
    assert axes.get_yscale() == "log"
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title()) == ("frame", "relative L2 error", "now")
    assert all(float(tick).is_integer() for tick in axes.get_xticks())


def test_earlier_errors_are_dotted_and_named_once():
    figure = error_curves_figure(
        ERRORS,
        channels=["a", "b"],
        positions=[0.1, 0.2, 0.3],
        unit="t",
        before=2 * ERRORS,
        before_label="after 1 epoch",
    )
    dotted = [line for line in figure.axes[0].lines if line.get_linestyle() == ":"]
    np.testing.assert_allclose(dotted[-1].get_ydata(), 2 * ERRORS.mean(1))
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b", "mean", "after 1 epoch"]
    assert [line.get_color() for line in dotted] == ["C0", "C1", "black"]


def test_references_are_grey_lines_with_names():
    references = {"persistence": [0.3, 0.4, 0.5], "drift-free": [0.2, 0.2, 0.2]}
    figure = error_curves_figure(ERRORS, channels=["a", "b"], positions=[0, 1, 2], references=references)
    grey = {line.get_label(): line for line in figure.axes[0].lines if line.get_color() == "grey"}
    assert {name: list(line.get_ydata()) for name, line in grey.items()} == references
    assert len({line.get_linestyle() for line in grey.values()}) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()][-2:] == list(references)
    with pytest.raises(ValueError, match="`references` to have an error for each of 3 positions, but got 1 of 'other'"):
        error_curves_figure(ERRORS, channels=["a", "b"], positions=[0, 1, 2], references={"other": [1.0]})


@pytest.mark.parametrize("errors", [np.zeros((3, 2)), np.full((3, 2), np.nan), np.array([[0.0, np.inf], [0.1, 1.0]])])
def test_errors_that_have_no_logarithm_are_gaps(errors):
    figure = error_curves_figure(errors, channels=["a", "b"], positions=list(range(len(errors))))
    assert figure.axes[0].get_yscale() == ("log" if (np.isfinite(errors) & (errors > 0)).any() else "linear")
    assert pixels(figure).shape[0] > 300


@pytest.mark.parametrize(("most", "labels"), [(0.5, {"0.3", "0.4"}), (90.0, {"1", "10"})])
def test_numbers_are_plain(most, labels):
    figure = error_curves_figure([[0.26], [most]], channels=["a"], positions=[0, 1])
    pixels(figure)
    axis = figure.axes[0].yaxis
    ticks = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
    low, high = figure.axes[0].get_ylim()
    shown = {tick.label1.get_text() for tick in ticks if low <= tick.get_loc() <= high} - {""}
    assert labels <= shown
    assert all(float(text) > 0 and "e" not in text for text in shown)


def test_many_channels_with_long_names_fit():
    names = [f"a_channel_with_a_name_{i}" for i in range(14)]
    figure = error_curves_figure(np.ones((1, 14)), channels=names, positions=[5])
    pixels(figure)
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1
    assert legend.y1 <= figure.axes[0].get_window_extent().y0
    styles = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(styles) == 15


@pytest.mark.parametrize(
    ("errors", "options", "message"),
    [
        (np.ones(3), {}, r"`errors` to have 2 dimension\(s\), but got shape \(3,\)"),
        (np.ones((0, 2)), {"positions": []}, r"`errors` to have frames and channels, but got shape \(0, 2\)"),
        (np.ones((3, 3)), {}, r"one row a position and one column a channel, \(3, 2\), but got shape \(3, 3\)"),
        (np.ones((3, 2)), {"before": np.ones((2, 2))}, "`before` to have the shape of `errors`"),
    ],
)
def test_mistakes(errors, options, message):
    with pytest.raises(ValueError, match=message):
        error_curves_figure(errors, **{"channels": ["a", "b"], "positions": [0, 1, 2], **options})
