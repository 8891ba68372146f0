import math

import pytest
import torch

from lightning_farms import LayerSpectrum, SpectralReport
from lightning_farms.analysis.history import LayerHistory
from lightning_farms.loggers.pictures import (
    _depth_figure,
    _map_figure,
    analysis_pictures,
    hand_out,
    run_figures,
    spread_over_depth,
)
from lightning_farms.loggers.sinks import Sink


class Keeper(Sink):
    """Keeps the pixels by key."""

    def __init__(self):
        self.kept = {}

    def image(self, key, pixels, step):
        self.kept[key] = pixels

    figure = image


def test_layer_names_are_no_mathematics():
    history, name, keeper = LayerHistory(), r"$x_$", Keeper()
    history.append(0, {"alpha": {name: 2.0}})
    row = LayerSpectrum(name, "linear", (9, 9), alpha=2.0, xmin=1.0, ks_distance=0.1, eigenvalues=torch.arange(1.0, 9))
    assert hand_out(run_figures("farms", SpectralReport([row]), [history], [row]), [keeper], 0) == []
    assert keeper.kept.keys() == {"farms/alpha_map_labelled", "farms/alpha_over_depth", "farms/esd/$x_$"}


def test_the_map_of_a_long_run_stays_small_and_ends_with_the_last_analysis():
    history, keeper = LayerHistory(), Keeper()
    for epoch in range(1000):
        history.append(epoch, {"alpha": {"a": float(epoch), "b": 0.0}})
    assert hand_out(analysis_pictures("farms", SpectralReport([]), [history]), [keeper], 0) == []
    image = keeper.kept["farms/alpha_map"]
    assert image.shape[1] <= 480
    assert image[0, -1].tolist() == [253, 231, 36]


def test_history_of_steps_gives_maps_a_step_axis():
    history = LayerHistory()
    for step in (0, 50, 100):
        history.append(step // 100, {"alpha": {"a": 2.0}}, step=step)
    axes = _map_figure(history, "alpha").axes[0]
    assert axes.get_xlabel() == "step"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0", "50", "100"]


def test_every_quantity_of_every_history_is_shown():
    history, other = LayerHistory(), LayerHistory()
    history.append(0, {"alpha": {"a": 2.0}})
    other.append(0, {"alpha": {"a": 2.0}, "weight_decay": {"a": 0.1}})
    report = SpectralReport([LayerSpectrum("a", "linear", (4, 4), alpha=2.0)])
    histories = [history, other.without("alpha")]
    assert [picture.key for picture in analysis_pictures("farms", report, histories)] == [
        "farms/alpha_histogram",
        "farms/alpha_map",
        "farms/weight_decay_map",
    ]
    assert [picture.key for picture in run_figures("farms", report, histories, [])] == [
        "farms/alpha_map_labelled",
        "farms/weight_decay_map_labelled",
        "farms/alpha_over_depth",
    ]
    assert other.quantities() == ["alpha", "weight_decay"]


def test_a_histogram_needs_a_finite_alpha():
    report = SpectralReport([LayerSpectrum("a", "linear", (4, 4), alpha=math.nan)])
    assert analysis_pictures("farms", report, [LayerHistory()]) == []


def test_spread_over_depth():
    rows = [LayerSpectrum(f"l{i}", "linear", (4, 4), alpha=2.0) for i in range(9)]
    rows[4] = LayerSpectrum("l4", "linear", (1, 4), status="skipped", reason="a vector")
    report = SpectralReport(rows)
    assert spread_over_depth(report, 3) in (["l0", "l3", "l8"], ["l0", "l5", "l8"])
    assert spread_over_depth(report, 1) == ["l0"]
    assert spread_over_depth(report, 0) == []
    assert len(spread_over_depth(report, 20)) == 8


@pytest.mark.parametrize(("largest", "scale"), [(3.0, "linear"), (834.0, "log")])
def test_the_map_tells_layers_apart_beside_one_far_beyond(largest, scale):
    history, keeper = LayerHistory(), Keeper()
    history.append(0, {"alpha": {"a": 2.0, "b": 2.5, "orthogonal": largest}})
    assert _map_figure(history, "alpha").axes[1].get_yscale() == scale
    assert hand_out(analysis_pictures("farms", SpectralReport([]), [history]), [keeper], 0) == []
    image = keeper.kept["farms/alpha_map"]
    assert (image[0, 0] != image[len(image) // 2, 0]).any()


@pytest.mark.parametrize(("epochs", "words"), [(1, "after 1 epoch"), (2, "after 2 epochs")])
def test_the_title_counts(epochs, words):
    history = LayerHistory()
    report = SpectralReport([LayerSpectrum("a", "linear", (4, 4), alpha=2.0)])
    for epoch in (0, epochs):
        history.append(epoch, {"alpha": {"a": 2.0}})
    assert _depth_figure(report, history).axes[0].get_title() == f"alpha before training and {words}"
