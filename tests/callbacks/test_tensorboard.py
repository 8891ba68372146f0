"""What TensorBoard holds after a run, read back with its own event reader."""

import io

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from lightning_farms import FARMS, LayerSpectrum, SpectralMonitor, SpectralReport, TBSigmoid, analyze
from lightning_farms.callbacks import question, tensorboard
from lightning_farms.callbacks.history import LayerHistory
from lightning_farms.callbacks.tensorboard import spread_over_depth, write_maps

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
    expected = {f"farms/alpha/{layer}" for layer in LAYERS} | {f"lr-SGD/{layer}" for layer in LAYERS}
    expected |= {"farms/alpha_mean", "farms/alpha_std", "farms/time/analysis_seconds", "farms/time/epoch_share"}
    assert expected | {"farms/time/logging_seconds"} <= scalars
    assert events.Tags()["histograms"] == ["farms/alpha_histogram"]
    maps = {f"farms/{quantity}_map{kind}" for quantity in ("alpha", "learning_rate") for kind in ("", "_labelled")}
    assert images == maps | {"farms/alpha_over_depth", "farms/esd/conv", "farms/esd/head"}


@pytest.mark.parametrize("broken", ["write_maps", "write_depth_figure"])
def test_a_picture_that_fails_is_reported_once_and_never_stops_training(broken, run, monkeypatch):
    def fail(*args):
        raise RuntimeError("no ink")

    monkeypatch.setattr(tensorboard, broken, fail)
    with pytest.warns(UserWarning, match="could not be written; training goes on. RuntimeError: no ink") as warned:
        events = run(SpectralMonitor(figures_every_n_epochs=1, summary=False), max_epochs=3)
    assert len([warning for warning in warned if "no ink" in str(warning.message)]) == 1
    assert len(events.Scalars("farms/alpha/head")) == 4


def test_scalars_hold_the_history(run):
    callback = TBSigmoid(summary=False)
    events = run(callback, max_epochs=3)
    for layer, alphas in zip(LAYERS, callback.history.rows("alpha"), strict=True):
        found = [event.value for event in events.Scalars(f"farms/alpha/{layer}")]
        assert found == pytest.approx(alphas, rel=1e-6)
    for layer, rates in zip(LAYERS, callback.history.rows("learning_rate"), strict=True):
        found = [event.value for event in events.Scalars(f"lr-SGD/{layer}")]
        assert found == pytest.approx(rates, rel=1e-6)
        assert found[-1] == pytest.approx(0.1 * callback.multipliers[layer], rel=1e-6)
    shares = [event.value for event in events.Scalars("farms/time/epoch_share")]
    assert len(shares) == 3
    assert all(0 < share < 1 for share in shares)


def test_histograms_and_images_share_the_scalars_steps(run):
    events = run(SpectralMonitor(figures_every_n_epochs=0, summary=False), max_epochs=3)
    steps = [event.step for event in events.Scalars("farms/alpha/conv")]
    assert [event.step for event in events.Histograms("farms/alpha_histogram")] == steps
    assert [event.step for event in events.Images("farms/alpha_map")] == steps
    assert [event.step for event in events.Images("farms/alpha_map_labelled")] == steps[-1:]
    assert [event.step for event in events.Images("farms/esd/conv")] == steps[-1:]


def test_histogram_counts_the_layers_where_their_alphas_are(run):
    monitor = SpectralMonitor(summary=False)
    events = run(monitor, max_epochs=1)
    last = events.Histograms("farms/alpha_histogram")[-1].histogram_value
    alphas = list(monitor.report.alphas.values())
    assert last.num == 3
    assert (last.min, last.max, last.sum) == pytest.approx((min(alphas), max(alphas), sum(alphas)))


def test_the_map_shows_one_block_of_colour_a_layer_and_epoch(run):
    monitor = SpectralMonitor(summary=False)
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
    events = run(SpectralMonitor(summary=False), max_epochs=1)
    for tag in ("farms/alpha_map_labelled", "farms/alpha_over_depth", "farms/esd/conv"):
        image = picture(events.Images(tag)[-1])
        assert min(image.shape[:2]) >= 200
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50


@pytest.mark.parametrize("callback", [SpectralMonitor, TBSigmoid])
def test_nothing_to_show_is_no_failure(callback, loader, make_trainer, tmp_path):
    """Without a layer, and with a layer that no optimizer has: the second has alphas but no rates."""

    class Vectors(pl.LightningModule):
        def __init__(self, *layers):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(108))
            self.layers = nn.ModuleList(layers)

        def training_step(self, batch, batch_idx):
            return (batch[0].flatten(1) @ self.weight).square().mean()

        def configure_optimizers(self):
            return torch.optim.SGD([self.weight], lr=1e-4)

    for version, layers in enumerate([(), (nn.Linear(20, 20),)]):
        logger = TensorBoardLogger(tmp_path, name="tb", version=version)
        make_trainer([callback(summary=False)], logger=logger).fit(Vectors(*layers), loader)
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


def test_figures_whose_analysis_fails_stop_nothing(run, monkeypatch):
    def out_of_memory(model, method, **options):
        if options.get("keep_eigenvalues"):
            raise RuntimeError("out of memory")
        return analyze(model, method, **options)

    monkeypatch.setattr(question, "analyze", out_of_memory)
    with pytest.warns(UserWarning, match="failed and was skipped; training goes on. RuntimeError: out of memory"):
        events = run(SpectralMonitor(summary=False), max_epochs=1)
    assert set(events.Tags()["images"]) == {
        "farms/alpha_map",
        "farms/alpha_map_labelled",
        "farms/alpha_over_depth",
    }


def test_layer_names_are_no_mathematics(tmp_path):
    history, name = LayerHistory(), "$x_$"
    history.append(0, {"alpha": {name: 2.0}})
    row = LayerSpectrum(name, "linear", (9, 9), alpha=2.0, xmin=1.0, ks_distance=0.1, eigenvalues=torch.arange(1.0, 9))
    with SummaryWriter(tmp_path) as writer:
        tensorboard.write_map_figures(writer, "farms", history, 0)
        tensorboard.write_depth_figure(writer, "farms", SpectralReport([row]), history, 0)
        tensorboard.write_esd_figures(writer, "farms", [row], 0)
    assert set(EventAccumulator(str(tmp_path)).Reload().Tags()["images"]) == {
        "farms/alpha_map_labelled",
        "farms/alpha_over_depth",
        "farms/esd/$x_$",
    }


def test_two_analyses_do_not_mix(run):
    events = run(SpectralMonitor(summary=False), SpectralMonitor(FARMS(aspect_ratio=0.5), summary=False), max_epochs=1)
    assert {"farms/alpha_histogram", "farms-2/alpha_histogram"} == set(events.Tags()["histograms"])


def test_spread_over_depth():
    rows = [LayerSpectrum(f"l{i}", "linear", (4, 4), alpha=2.0) for i in range(9)]
    rows[4] = LayerSpectrum("l4", "linear", (1, 4), status="skipped", reason="a vector")
    report = SpectralReport(rows)
    assert spread_over_depth(report, 3) in (["l0", "l3", "l8"], ["l0", "l5", "l8"])
    assert spread_over_depth(report, 1) == ["l0"]
    assert spread_over_depth(report, 0) == []
    assert len(spread_over_depth(report, 20)) == 8


def test_the_map_of_a_long_run_stays_small(tmp_path):
    history = LayerHistory()
    for epoch in range(1000):
        history.append(epoch, {"alpha": {"a": float(epoch), "b": 0.0}})
    with SummaryWriter(tmp_path) as writer:
        write_maps(writer, "farms", history, 0)
    image = picture(EventAccumulator(str(tmp_path)).Reload().Images("farms/alpha_map")[-1])
    assert image.shape[1] <= 480
    assert image[0, -1].tolist() == [253, 231, 36]  # the last epoch is shown
