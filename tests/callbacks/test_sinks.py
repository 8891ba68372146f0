"""Loggers of other packages, by plain classes with their methods; the real ones are in test_real_loggers.py."""

import re

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, Logger, MLFlowLogger, TensorBoardLogger, WandbLogger

from lightning_farms import SpectralMonitor, TBSigmoid
from lightning_farms.loggers.pictures import Picture, hand_out
from lightning_farms.loggers.sinks import ImageSink, MLflowSink, Sink, TensorBoardSink, WandbSink, sinks


class ScalarLogger(Logger):
    """Keeps what it is given."""

    def __init__(self):
        super().__init__()
        self.scalars = []
        self.images = []

    name, version = "kept", 0

    def log_metrics(self, metrics, step=None):
        self.scalars.append((step, dict(metrics)))

    def log_hyperparams(self, params, *args, **kwargs):
        pass


class ImageLogger(ScalarLogger):
    def log_image(self, key, images, step=None):
        assert all(image.dtype == np.uint8 and image.ndim == 3 and image.shape[2] == 3 for image in images)
        self.images.append((step, key))


class BrokenLogger(ScalarLogger):
    def log_image(self, key, images, step=None):
        raise ConnectionError("no server")


def unmade(kind):
    """An instance without its package: __init__ would ask for it."""
    return kind.__new__(kind)


@pytest.mark.parametrize(
    ("logger", "expected"),
    [
        (lambda path: TensorBoardLogger(path), TensorBoardSink),
        (lambda path: unmade(WandbLogger), WandbSink),
        (lambda path: unmade(MLFlowLogger), MLflowSink),
        (lambda path: ImageLogger(), ImageSink),
        (lambda path: CSVLogger(path), None),
        (lambda path: ScalarLogger(), None),
    ],
)
def test_each_logger_has_its_sink(logger, expected, make_trainer, tmp_path):
    found = sinks(make_trainer([], logger=logger(tmp_path)))
    assert [type(sink) for sink in found] == ([] if expected is None else [expected])


def test_no_sink_where_nothing_is_kept(make_trainer, monkeypatch):
    assert sinks(make_trainer([], logger=False)) == []
    assert sinks(make_trainer([], logger=ImageLogger(), fast_dev_run=True)) == []
    trainer = make_trainer([], logger=ImageLogger())
    monkeypatch.setattr(type(trainer), "is_global_zero", False)
    assert sinks(trainer) == []


def test_a_logger_with_images_gets_scalars_and_images_at_the_same_steps(small_net, loader, make_trainer):
    logger = ImageLogger()
    callback = TBSigmoid(figures_every_n_epochs=2, esd_layers=1, summary=False)
    make_trainer([callback], logger=logger, max_epochs=3).fit(small_net(), loader)
    alphas = [step for step, scalars in logger.scalars if "farms/alpha/conv" in scalars]
    assert len(alphas) == 4
    assert [step for step, key in logger.images if key == "farms/alpha_map"] == alphas
    assert [step for step, key in logger.images if key == "farms/esd/conv"] == alphas[2:]
    steps = [step for step, _ in logger.images]
    assert steps == sorted(steps)
    assert {key for _, key in logger.images} == {
        "farms/alpha_map",
        "farms/learning_rate_map",
        "farms/alpha_map_labelled",
        "farms/learning_rate_map_labelled",
        "farms/alpha_over_depth",
        "farms/esd/conv",
    }


def test_all_scalars_of_an_analysis_come_in_one_call(small_net, loader, make_trainer):
    logger = ScalarLogger()
    make_trainer([TBSigmoid(summary=False)], logger=logger, max_epochs=2).fit(small_net(), loader)
    ours = [set(scalars) for _, scalars in logger.scalars if any(key.startswith("farms/") for key in scalars)]
    assert len(ours) == 3
    by_layer = {f"{part}/{layer}" for part in ("farms/alpha", "layer_lr/SGD") for layer in ("conv", "hidden", "head")}
    assert all(by_layer | {"farms/alpha_mean", "farms/time/analysis_seconds"} <= keys for keys in ours)


def test_a_broken_logger_is_told_of_once_and_keeps_no_other_from_its_pictures(small_net, loader, make_trainer):
    good = ImageLogger()
    trainer = make_trainer([SpectralMonitor(summary=False)], logger=[BrokenLogger(), good], max_epochs=3)
    with pytest.warns(UserWarning, match="training goes on. ConnectionError: no server") as warned:
        trainer.fit(small_net(), loader)
    assert len([warning for warning in warned if "no server" in str(warning.message)]) == 1
    assert len([key for _, key in good.images if key == "farms/alpha_map"]) == 4


def test_each_picture_is_drawn_once_for_all_and_not_at_all_for_none():
    class Keeper(Sink):
        def __init__(self):
            self.kept = []

        def figure(self, key, pixels, step):
            self.kept.append((key, pixels, step))

    drawn = []

    def draw():
        drawn.append(np.zeros((2, 3, 3), dtype=np.uint8))
        return drawn[-1]

    first, second = Keeper(), Keeper()
    assert hand_out([Picture("figure", "a", draw)], [first, Sink(), second], step=7) == []
    assert first.kept == second.kept == [("a", drawn[0], 7)]
    assert hand_out([Picture("figure", "a", draw)], [], step=7) == []
    assert len(drawn) == 1


def test_a_drawing_that_fails_leaves_the_others():
    class Keeper(Sink):
        keys = ()

        def image(self, key, pixels, step):
            self.keys += (key,)

    def fail():
        raise RuntimeError("no ink")

    keeper = Keeper()
    (error,) = hand_out([Picture("image", "a", fail), Picture("image", "b", lambda: None)], [keeper], step=0)
    assert str(error) == "no ink"
    assert keeper.keys == ("b",)


class Client:
    """MlflowClient's two methods; names as it allows them."""

    def __init__(self):
        self.calls = []

    def log_image(self, run_id, image, artifact_file=None, key=None, step=None):
        self.calls.append((run_id, key, step, image.shape))

    def log_text(self, run_id, text, artifact_file):
        self.calls.append((run_id, artifact_file, text))


def test_mlflow_gets_figures_and_texts_under_names_that_it_allows():
    class Logged(MLFlowLogger):
        experiment, run_id, _prefix = Client(), "r1", "p"

        def __init__(self):
            pass

    logger = Logged()
    sink = MLflowSink(logger)
    sink.image("farms/alpha_map", np.zeros((2, 2, 3), dtype=np.uint8), 3)
    sink.figure("farms/esd/$x_$[0]é", np.zeros((2, 4, 3), dtype=np.uint8), 3)
    sink.text("farms/options", "text", 3)
    assert logger.experiment.calls == [
        ("r1", "p-farms/esd/u0024x_u0024u005B0u005Du00E9", 3, (2, 4, 3)),
        ("r1", "p-farms/options.md", "text"),
    ]


@pytest.mark.parametrize(
    ("bases", "parts"), [((ScalarLogger,), [2300]), ((ScalarLogger, MLFlowLogger), [1000, 1000, 300])]
)
def test_mlflow_is_given_as_many_scalars_at_a_time_as_it_takes(bases, parts, make_trainer):
    from lightning_farms.loggers.scalars import log_scalars

    logger = type("Kept", bases, {"__init__": lambda self: None})()
    logger.scalars = []
    scalars = {f"farms/alpha/{i}": float(i) for i in range(2300)}
    log_scalars(make_trainer([], logger=logger), {**scalars, "nan": float("nan")}, 5)
    assert [(step, len(part)) for step, part in logger.scalars] == [(5, size) for size in parts]
    assert {key: value for _, part in logger.scalars for key, value in part.items()} == scalars
    log_scalars(make_trainer([], logger=logger), {"nan": float("nan")}, 6)
    assert len(logger.scalars) == len(parts)


def test_mlflow_keeps_layers_apart_whose_names_it_forbids(make_trainer):
    from lightning_farms.loggers.scalars import log_scalars

    logger = type("Kept", (ScalarLogger, MLFlowLogger), {"__init__": lambda self: None})()
    logger.scalars = []
    log_scalars(
        make_trainer([], logger=logger), {"alpha/\u7f16\u7801": 2.0, "alpha/\u89e3\u7801": 3.0, "alpha/x": 1.0}, 0
    )
    allowed = {re.sub("[^a-zA-Z0-9_/. -]+", "", key): value for key, value in logger.scalars[0][1].items()}
    assert sorted(allowed.values()) == [1.0, 2.0, 3.0]
    assert allowed["alpha/x"] == 1.0


def test_csv_of_many_layers_is_never_written_anew(make_trainer, tmp_path):
    """200 layers, 30 analyses among Lightning's own lines, as its connector writes them.

    CSVLogger writes its file anew where there are new columns, which its first line then shows.
    """
    from lightning_farms.loggers.scalars import log_scalars

    logger = CSVLogger(tmp_path)
    file, headers = tmp_path / "lightning_logs/version_0/metrics.csv", set()
    trainer = make_trainer([], logger=logger)
    for epoch in range(30):
        log_scalars(trainer, {f"farms/alpha/{i}": 1.0 * epoch for i in range(200)}, epoch)
        logger.log_metrics({"loss": 1.0}, step=epoch)
        logger.save()
        headers.add(file.read_text().splitlines()[0])
    assert [len(header.split(",")) for header in headers] == [202]
    assert len(file.read_text().splitlines()) == 61
