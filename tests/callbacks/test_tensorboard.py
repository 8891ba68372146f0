"""What TensorBoard holds after a run, read back with its own event reader."""

import io
import re

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.custom_scalar import layout_pb2
from torch import nn

from lightning_farms import FARMS, SpectralMonitor, TBSigmoid, WholeMatrix

LAYERS = ("conv", "hidden", "head")


@pytest.fixture
def run(small_net, loader, make_trainer, tmp_path):
    def fit(*callbacks, **kwargs):
        logger = TensorBoardLogger(tmp_path, name="tb", version=0)
        make_trainer(list(callbacks), logger=logger, **kwargs).fit(small_net(), loader)
        events = EventAccumulator(logger.log_dir, size_guidance={"images": 0, "histograms": 0, "scalars": 0})
        return events.Reload()

    return fit


def picture(event):
    return np.asarray(Image.open(io.BytesIO(event.encoded_image_string)).convert("RGB"))


def test_everything_the_docstrings_promise(run):
    callback = TBSigmoid(figures_every_n_epochs=2, esd_layers=2, summary=False)
    events = run(callback, max_epochs=3)
    scalars, images = set(events.Tags()["scalars"]), set(events.Tags()["images"])
    expected = {f"farms/alpha/{layer}" for layer in LAYERS} | {f"layer_lr/SGD/{layer}" for layer in LAYERS}
    expected |= {"farms/alpha_mean", "farms/alpha_std", "farms/time/analysis_seconds", "farms/time/epoch_share"}
    assert expected | {"farms/time/logging_seconds"} <= scalars
    assert events.Tags()["histograms"] == ["farms/alpha_histogram"]
    maps = {f"farms/{quantity}_map{kind}" for quantity in ("alpha", "learning_rate") for kind in ("", "_labelled")}
    assert images == maps | {"farms/alpha_over_depth", "farms/esd/conv", "farms/esd/head"}


@pytest.mark.parametrize(
    ("library", "function", "missing"),
    [(np, "moveaxis", "farms/alpha_map"), (Axes, "hlines", "farms/alpha_over_depth")],
    ids=["image", "figure"],
)
def test_a_picture_that_fails_is_reported_once_and_stops_neither_training_nor_the_others(
    library, function, missing, run, monkeypatch
):
    def fail(*args, **options):
        raise RuntimeError("no ink")

    monkeypatch.setattr(library, function, fail)
    with pytest.warns(UserWarning, match="could not be written; training goes on. RuntimeError: no ink") as warned:
        events = run(SpectralMonitor(figures_every_n_epochs=1, esd_layers=1, summary=False), max_epochs=2)
    assert len([warning for warning in warned if "no ink" in str(warning.message)]) == 1
    assert len(events.Scalars("farms/alpha/head")) == 3
    assert len(events.Images("farms/esd/conv")) == 2
    drawn = {"farms/alpha_map", "farms/alpha_map_labelled", "farms/alpha_over_depth", "farms/esd/conv"}
    assert set(events.Tags()["images"]) == drawn - {missing}


def test_scalars_hold_the_history(run):
    callback = TBSigmoid(figures_every_n_epochs=0, esd_layers=0, summary=False)
    events = run(callback, max_epochs=3)
    for layer, alphas in zip(LAYERS, callback.history.rows("alpha"), strict=True):
        found = [event.value for event in events.Scalars(f"farms/alpha/{layer}")]
        assert found == pytest.approx(alphas, rel=1e-6)
    for layer, rates in zip(LAYERS, callback.history.rows("learning_rate"), strict=True):
        found = [event.value for event in events.Scalars(f"layer_lr/SGD/{layer}")]
        assert found == pytest.approx(rates, rel=1e-6)
        assert found[-1] == pytest.approx(0.1 * callback.multipliers[layer], rel=1e-6)
    shares = [event.value for event in events.Scalars("farms/time/epoch_share")]
    assert len(shares) == 3
    assert all(0 < share < 1 for share in shares)


def test_histograms_and_images_share_the_scalars_steps(run):
    events = run(SpectralMonitor(figures_every_n_epochs=0, esd_layers=1, summary=False), max_epochs=3)
    steps = [event.step for event in events.Scalars("farms/alpha/conv")]
    assert [event.step for event in events.Histograms("farms/alpha_histogram")] == steps
    assert [event.step for event in events.Images("farms/alpha_map")] == steps
    assert [event.step for event in events.Images("farms/alpha_map_labelled")] == steps[-1:]
    assert [event.step for event in events.Images("farms/esd/conv")] == steps[-1:]


@pytest.mark.parametrize("accumulated", [1, 2])
@pytest.mark.parametrize("every_n_steps", [1, 2, 3])
def test_an_analysis_after_a_step_stands_where_that_steps_loss_does(run, every_n_steps, accumulated):
    monitor = SpectralMonitor(every_n_steps=every_n_steps, esd_layers=0, summary=False)
    events = run(monitor, max_epochs=4, accumulate_grad_batches=accumulated, log_every_n_steps=1)
    steps = 16 // accumulated
    assert sorted({event.step for event in events.Scalars("loss")}) == list(range(steps))
    expected = [0, *range(every_n_steps - 1, steps, every_n_steps)]
    assert [event.step for event in events.Scalars("farms/alpha/conv")] == expected
    assert [event.step for event in events.Histograms("farms/alpha_histogram")] == expected
    assert [max(0, step - 1) for step in monitor.history.steps] == expected


def test_histogram_counts_the_layers_where_their_alphas_are(run):
    monitor = SpectralMonitor(esd_layers=0, summary=False)
    events = run(monitor, max_epochs=1)
    last = events.Histograms("farms/alpha_histogram")[-1].histogram_value
    alphas = list(monitor.report.alphas.values())
    assert last.num == 3
    assert (last.min, last.max, last.sum) == pytest.approx((min(alphas), max(alphas), sum(alphas)))


def test_the_map_shows_one_block_of_colour_a_layer_and_epoch(run):
    monitor = SpectralMonitor(esd_layers=0, summary=False)
    events = run(monitor, max_epochs=1)
    image = picture(events.Images("farms/alpha_map")[-1])
    rows = np.array(monitor.history.rows("alpha"))
    height, width = image.shape[0] // rows.shape[0], image.shape[1] // rows.shape[1]
    cells = image[height // 2 :: height, width // 2 :: width]
    lowest = np.unravel_index(rows.argmin(), rows.shape)
    highest = np.unravel_index(rows.argmax(), rows.shape)
    assert cells.shape == (*rows.shape, 3)
    assert cells[lowest].tolist() == [68, 1, 84]  # the ends of viridis
    assert cells[highest].tolist() == [253, 231, 36]


def test_labelled_figures_are_of_a_size_to_read(run):
    events = run(SpectralMonitor(esd_layers=1, summary=False), max_epochs=1)
    for tag in ("farms/alpha_map_labelled", "farms/alpha_over_depth", "farms/esd/conv"):
        image = picture(events.Images(tag)[-1])
        assert min(image.shape[:2]) >= 200
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


class Vectors(pl.LightningModule):
    """Trains a vector, beside layers that no optimizer has."""

    def __init__(self, *layers):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(108))
        self.layers = nn.ModuleList(layers)

    def training_step(self, batch, batch_idx):
        return (batch[0].flatten(1) @ self.weight).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD([self.weight], lr=1e-4)


@pytest.mark.filterwarnings("ignore:TBSigmoid. all layers have the same learning rate")
@pytest.mark.parametrize("layers", [0, 1])
@pytest.mark.parametrize("callback", [SpectralMonitor, TBSigmoid])
def test_nothing_to_show_is_no_failure(callback, layers, loader, make_trainer, tmp_path):
    """Without a layer, and with a layer that no optimizer has: the second has alphas but no rates."""
    logger = TensorBoardLogger(tmp_path, name="tb", version=0)
    model = Vectors(*(nn.Linear(20, 20) for _ in range(layers)))
    make_trainer([callback(summary=False)], logger=logger).fit(model, loader)
    images = EventAccumulator(logger.log_dir).Reload().Tags()["images"]
    assert ("farms/alpha_map" in images) == ("farms/alpha_map_labelled" in images) == bool(layers)
    assert not any("learning_rate" in tag for tag in images)


def test_a_layer_that_dies_has_no_spectrum_and_stops_nothing(run):
    class Kill(pl.Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            if trainer.current_epoch == 1:
                pl_module.head.requires_grad_(False).weight.zero_()

    events = run(SpectralMonitor(figures_every_n_epochs=1, summary=False), Kill(), max_epochs=2)
    count = {layer: len(events.Images(f"farms/esd/{layer}")) for layer in LAYERS}
    assert count == {"conv": 2, "hidden": 2, "head": 1}


def test_figures_whose_analysis_fails_stop_nothing(run):
    """It is the third one, after those before training and of the only epoch."""

    class OutOfMemory(FARMS):
        analyses = 0

        def orient(self, matrices, kind):
            OutOfMemory.analyses += kind == "convolution"
            if OutOfMemory.analyses > 2:
                raise RuntimeError("out of memory")
            return super().orient(matrices, kind)

    with pytest.warns(UserWarning, match="failed and was skipped; training goes on. RuntimeError: out of memory"):
        events = run(SpectralMonitor(OutOfMemory(), summary=False), max_epochs=1)
    assert OutOfMemory.analyses == 3
    assert len(events.Scalars("farms/alpha/conv")) == 2
    assert set(events.Tags()["images"]) == {
        "farms/alpha_map",
        "farms/alpha_map_labelled",
        "farms/alpha_over_depth",
    }


def test_two_analyses_do_not_mix(run):
    other = SpectralMonitor(FARMS(aspect_ratio=0.5), esd_layers=0, summary=False)
    events = run(SpectralMonitor(esd_layers=0, summary=False), other, max_epochs=1)
    assert {"farms/alpha_histogram", "farms-2/alpha_histogram"} == set(events.Tags()["histograms"])


def layout_of(events):
    """The last layout that was written: {category: {chart: patterns}}."""
    (tensor,) = events.Tensors("custom_scalars__config__")[-1:]
    layout = layout_pb2.Layout.FromString(tensor.tensor_proto.string_val[0])
    return {c.title: {chart.title: list(chart.multiline.tag) for chart in c.chart} for c in layout.category}


def test_one_layout_has_the_charts_of_all_callbacks(run):
    whole = SpectralMonitor(WholeMatrix(), esd_layers=0, summary=False)
    monitor, sigmoid = (kind(esd_layers=0, summary=False) for kind in (SpectralMonitor, TBSigmoid))
    events = run(monitor, whole, sigmoid, max_epochs=1)
    assert len(events.Tensors("custom_scalars__config__")) == 1
    layout = layout_of(events)
    assert list(layout) == ["farms", "whole"]

    def shown(category, chart):
        tags = events.Tags()["scalars"]
        return {tag for tag in tags if any(re.match(pattern, tag) for pattern in layout[category][chart])}

    assert shown("farms", "alpha of every layer") == {f"farms/alpha/{layer}" for layer in LAYERS}
    assert shown("farms", "layer_lr/SGD of every layer") == {f"layer_lr/SGD/{layer}" for layer in LAYERS}
    assert shown("whole", "alpha of every layer") == {f"whole/alpha/{layer}" for layer in LAYERS}
    assert shown("whole", "mean of alpha over layers") == {"whole/alpha_mean"}
    assert shown("farms", "share of the epoch") == {"farms/time/epoch_share"}
    assert len(shown("farms", "seconds of analysis and of logging")) == 2
    assert all(shown(category, chart) for category, charts in layout.items() for chart in charts)


def test_options_are_a_text(run):
    events = run(
        TBSigmoid(tau=7.5, esd_layers=0, summary=False),
        SpectralMonitor(every_n_epochs=2, esd_layers=0, summary=False),
        max_epochs=1,
    )
    (tensor,) = events.Tensors("farms/options/text_summary")
    text = tensor.tensor_proto.string_val[0].decode()
    assert [line[4:] for line in text.splitlines() if line.startswith("### ")] == [
        "TBSigmoid",
        "SpectralMonitor",
        "Versions",
    ]
    assert "| tau | `7.5` |" in text
    assert "| every_n_epochs | `2` |" in text
    assert f"| torch | `'{torch.__version__}'` |" in text


def test_the_loggers_prefix_is_that_of_pictures_and_charts_too(small_net, loader, make_trainer, tmp_path):
    logger = TensorBoardLogger(tmp_path, name="tb", version=0, prefix="run.1")
    make_trainer([SpectralMonitor(esd_layers=1, summary=False)], logger=logger, max_epochs=1).fit(small_net(), loader)
    events = EventAccumulator(logger.log_dir).Reload()
    tags = events.Tags()
    assert all(tag.startswith("run.1-farms/") for kind in ("images", "histograms") for tag in tags[kind])
    (pattern,) = layout_of(events)["farms"]["alpha of every layer"]
    assert {tag for tag in tags["scalars"] if re.match(pattern, tag)} == {f"run.1-farms/alpha/{la}" for la in LAYERS}
