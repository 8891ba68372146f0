"""All callbacks in a Trainer of `lightning.pytorch` and in one of `pytorch_lightning`: the same comes out."""

import math
import re
import sys
from unittest import mock

import lightning.pytorch as newer
import numpy as np
import pytest
import pytorch_lightning as older
import torch
from pytorch_lightning.cli import LightningCLI
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms import (
    FARMS,
    LayerwiseLearningRate,
    LayerwisePruning,
    PredictionWriter,
    RolloutMonitor,
    SpectralMonitor,
    SqrtMap,
    TBSigmoid,
    TempBalance,
    WeightDecayBalance,
)
from lightning_farms.data import DigitsDataModule
from lightning_farms.loggers.scalars import log_scalars
from lightning_farms.loggers.sinks import MLflowSink, TensorBoardSink, WandbSink, sinks
from lightning_farms.models import ImageClassifier, OperatorModule
from lightning_farms.pruning import Cubic
from tests.callbacks.conftest import NotedFARMS, in_order
from tests.callbacks.rollouts import Operator, Shift, expected, flows

BOTH = pytest.mark.parametrize("package", [newer, older], ids=["lightning.pytorch", "pytorch_lightning"])


class Steps:
    """Of a module of either package."""

    def __init__(self, lr: float = 0.1):
        super().__init__()
        torch.manual_seed(1)
        self.lr = lr
        self.conv = nn.Conv2d(3, 8, 3)
        self.first, self.second, self.third = nn.Linear(8 * 16, 24), nn.Linear(24, 16), nn.Linear(16, 12)

    def training_step(self, batch, batch_idx):
        x, y = batch
        x = self.conv(x).tanh().flatten(1)
        return nn.functional.mse_loss(self.third(self.second(self.first(x).tanh()).tanh()), y)

    def validation_step(self, batch, batch_idx):
        self.log("validation", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=self.lr, weight_decay=0.1)

    def train_dataloader(self):
        generator = torch.Generator().manual_seed(2)
        x, y = torch.randn(16, 3, 6, 6, generator=generator), torch.randn(16, 12, generator=generator)
        return DataLoader(TensorDataset(x, y), batch_size=4)

    val_dataloader = train_dataloader


class RolloutSteps:
    """Rollouts of known errors, of a module of either package."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))

    rollout, validation_step, test_step = Operator.rollout, Operator.validation_step, Operator.test_step
    predict_step, configure_optimizers = Operator.predict_step, Operator.configure_optimizers

    def training_step(self, batch, batch_idx):
        return (self.weight * batch[0].mean()).square().sum()


class OlderNet(Steps, older.LightningModule):
    pass


def module(package, steps=Steps):
    return type("Module", (steps, package.LightningModule), {})()


@pytest.fixture
def trainer(tmp_path):
    def make(package, *callbacks, **options):
        settings = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "default_root_dir": tmp_path,
            "log_every_n_steps": 1,
            "num_sanity_val_steps": 0,
        }
        return package.Trainer(callbacks=[*callbacks], **{**settings, **options})

    return make


def board(package, folder):
    return package.loggers.TensorBoardLogger(folder / package.__name__, name="", version=0)


def content(logger):
    """Everything that a TensorBoard run holds, but for times and the versions of packages."""
    everything = dict.fromkeys(("scalars", "images", "histograms", "tensors"), 0)
    events = EventAccumulator(in_order(logger.log_dir), size_guidance=everything).Reload()
    tags = events.Tags()
    timed = {tag for tag in tags["scalars"] if "/time/" in tag}
    held = {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in set(tags["scalars"]) - timed}
    held |= {tag: [(e.step, len(e.encoded_image_string)) for e in events.Images(tag)] for tag in tags["images"]}
    held |= {tag: [(e.step, e.histogram_value) for e in events.Histograms(tag)] for tag in tags["histograms"]}
    for tag in tags["tensors"]:
        texts = [e.tensor_proto.string_val[0].partition(b"### Versions")[0] for e in events.Tensors(tag)]
        held[tag] = texts
    return held, timed, {kind: len(tags[kind]) for kind in everything}


@pytest.mark.filterwarnings("ignore:.*has no logger to write to:UserWarning")
class TestEqual:
    def test_tensorboard_holds_the_same(self, trainer, tmp_path):
        found = []
        for package in (newer, older):
            logger = board(package, tmp_path)
            callbacks = [
                TBSigmoid(figures_every_n_epochs=2, esd_layers=1, summary=False),
                LayerwisePruning(0.5, summary=False),
                WeightDecayBalance(summary=False),
            ]
            trainer(package, *callbacks, logger=logger).fit(module(package))
            found.append(content(logger))
        assert found[0] == found[1]
        held, timed, numbers = found[1]
        assert min(numbers.values()) >= 1
        assert {"farms/alpha_map", "farms/esd/first", "pruning/ratios", "layer_lr/AdamW/first"} <= held.keys()
        assert "farms/time/epoch_share" in timed
        assert {"farms/options/text_summary", "custom_scalars__config__"} <= held.keys()

    @pytest.mark.parametrize(
        "callback",
        [
            lambda: TempBalance(summary=False),
            lambda: TBSigmoid(analysis=FARMS(), every_n_steps=3, summary=False),
            lambda: WeightDecayBalance(every_n_steps=2, summary=False),
            lambda: LayerwiseLearningRate(SqrtMap(), overlap=True, summary=False),
            lambda: LayerwisePruning(0.5, schedule=Cubic(0, 2), summary=False),
        ],
    )
    def test_weights_and_multipliers_are_equal_bit_for_bit(self, callback, trainer):
        trained, analysed = {}, {}
        for package in (newer, older):
            ours = callback()
            net, plain = module(package), module(package)
            trainer(package, ours, max_epochs=3).fit(net)
            trainer(package, max_epochs=3).fit(plain)
            trained[package] = net.state_dict()
            analysed[package] = ours.history.state_dict(), getattr(ours, "multipliers", None)
            assert not torch.equal(net.first.weight, plain.first.weight)
        assert analysed[newer] == analysed[older]
        assert all(torch.equal(weight, trained[older][name]) for name, weight in trained[newer].items())

    @BOTH
    @pytest.mark.parametrize("saved_by", [newer, older], ids=["of lightning.pytorch", "of pytorch_lightning"])
    def test_a_run_resumes_the_checkpoint_of_either(self, saved_by, package, trainer, tmp_path):
        def run(which, **options):
            net, balance = module(which), TempBalance(summary=False)
            save = which.callbacks.ModelCheckpoint(tmp_path / "saved", filename="{epoch}", save_top_k=-1)
            trainer(which, balance, save, max_epochs=3, enable_checkpointing=True).fit(net, **options)
            return net.state_dict(), balance.multipliers, balance.history.state_dict()

        weights, *straight = run(saved_by)
        resumed, *others = run(package, ckpt_path=tmp_path / "saved" / "epoch=0.ckpt")
        assert others == straight
        assert all(torch.equal(weight, resumed[name]) for name, weight in weights.items())

    @BOTH
    def test_the_epochs_last_validation_is_known_as_such(self, package, trainer, noted):
        monitor = SpectralMonitor(NotedFARMS(), overlap=True, summary=False)
        trainer(package, monitor, max_epochs=3, num_sanity_val_steps=1).fit(module(package))
        assert (len(noted.in_background), len(noted.others)) == (3, 1)

    @BOTH
    def test_pruned_weights_are_zero_in_averages(self, package, trainer):
        average = package.callbacks.EMAWeightAveraging(decay=0.9)
        net, pruning = module(package), LayerwisePruning(0.5, schedule=Cubic(0, 2), summary=False)
        trainer(package, average, pruning, max_epochs=4).fit(net)
        weights = [layer.weight for layer in (net.conv, net.first, net.second, net.third)]
        assert sum(int((weight == 0).sum()) for weight in weights) == sum(weight.numel() for weight in weights) / 2

    @BOTH
    def test_other_callbacks_monitor_the_mean_of_alpha(self, package, trainer):
        stopper = package.callbacks.EarlyStopping("farms/alpha_mean", patience=1, mode="max", stopping_threshold=0.0)
        run = trainer(package, TBSigmoid(summary=False), stopper, max_epochs=5)
        run.fit(module(package))
        assert run.current_epoch == 1


# ---- loggers ---------------------------------------------------------------------------------------------------------


@BOTH
def test_several_loggers_of_both_packages(package, trainer, tmp_path):
    loggers = [board(newer, tmp_path), board(older, tmp_path)]
    loggers += [kind.loggers.CSVLogger(tmp_path / f"csv {kind.__name__}") for kind in (newer, older)]
    monitor = SpectralMonitor(esd_layers=1, summary=False)
    trainer(package, monitor, logger=loggers).fit(module(package))
    first, second = (content(logger) for logger in loggers[:2])
    assert first == second
    assert first[2]["images"] >= 4
    lines = [next(tmp_path.glob(f"csv {kind.__name__}/**/metrics.csv")).read_text() for kind in (newer, older)]
    assert lines[0] == lines[1]
    assert "farms/alpha/first" in lines[0]


@BOTH
@pytest.mark.parametrize("of", [newer, older], ids=["its logger", "the other's"])
@pytest.mark.parametrize(("name", "sink"), [("WandbLogger", WandbSink), ("MLFlowLogger", MLflowSink)])
def test_loggers_of_other_services_have_their_sinks(name, sink, of, package, trainer, tmp_path):
    kind = getattr(of.loggers, name)
    unmade = type("Unmade", (kind,), {"__init__": lambda self: None})()  # __init__ would ask for the service's package
    assert [type(found) for found in sinks(trainer(package, logger=[unmade, board(of, tmp_path)]))] == [
        sink,
        TensorBoardSink,
    ]


@BOTH
def test_mlflow_is_given_a_thousand_scalars_at_a_time(package, trainer):
    class Kept(package.loggers.MLFlowLogger):
        def __init__(self):
            self.sizes = []

        def log_metrics(self, metrics, step=None):
            self.sizes.append(len(metrics))

    logger = Kept()
    log_scalars(trainer(package, logger=logger), {f"farms/alpha/{i}": float(i) for i in range(2300)}, 5)
    assert logger.sizes == [1000, 1000, 300]


def test_both_versions_are_in_the_text(trainer, tmp_path):
    logger = board(older, tmp_path)
    trainer(older, SpectralMonitor(summary=False), logger=logger, max_epochs=1).fit(module(older))
    (tensor,) = EventAccumulator(logger.log_dir).Reload().Tensors("farms/options/text_summary")
    text = tensor.tensor_proto.string_val[0].decode()
    assert f"| lightning | `'{newer.__version__}'` |" in text
    assert f"| pytorch_lightning | `'{older.__version__}'` |" in text


# ---- what is refused -------------------------------------------------------------------------------------------------


class DeepSpeed:
    def __init__(self):
        pass


@BOTH
@pytest.mark.parametrize(
    ("callback", "strategy", "match"),
    [
        (TempBalance, lambda of: of.FSDPStrategy(use_orig_params=False), "Leave out `use_orig_params=False`"),
        (SpectralMonitor, lambda of: type("D", (DeepSpeed, of.DeepSpeedStrategy), {})(), "cannot use weights that D "),
        (LayerwisePruning, lambda of: of.FSDPStrategy(), r"FSDP1 flattens\. Use ModelParallelStrategy"),
    ],
)
def test_strategies_are_refused_by_an_exception_of_the_package(callback, strategy, match, package):
    run = mock.Mock(strategy=strategy(package.strategies), callbacks=[])
    with pytest.raises(package.utilities.exceptions.MisconfigurationException, match=match):
        callback().setup(run, module(package), "fit")


@BOTH
@pytest.mark.parametrize("of", [newer, older], ids=["ModelPruning", "ModelPruning of pytorch_lightning"])
def test_a_second_callback_that_prunes_is_refused(of, package, trainer):
    other = of.callbacks.ModelPruning("l1_unstructured", amount=0.5)
    with pytest.raises(package.utilities.exceptions.MisconfigurationException, match="ModelPruning would both prune"):
        trainer(package, LayerwisePruning(), other).fit(module(package))


@BOTH
@pytest.mark.filterwarnings("ignore:.*has no logger to write to:UserWarning")
def test_other_refusals_are_the_packages_too(package, trainer):
    error = package.utilities.exceptions.MisconfigurationException
    with pytest.raises(error, match="both adjust the learning rate"):
        trainer(package, TempBalance(), TBSigmoid()).fit(module(package))
    net = module(package)
    net.configure_optimizers = lambda: torch.optim.LBFGS(net.parameters())
    with pytest.raises(error, match="LBFGS"):
        trainer(package, TempBalance()).fit(net)
    loaders = [DataLoader(flows(2), 2)] * 2
    with pytest.raises(error, match="got 2 data loaders"):
        trainer(package, PredictionWriter()).predict(module(package, RolloutSteps), loaders)


# ---- rollouts --------------------------------------------------------------------------------------------------------


def test_rollouts_are_drawn_and_logged_the_same(trainer, tmp_path):
    found = []
    for package in (newer, older):
        logger, monitor = board(package, tmp_path), RolloutMonitor(every_n_epochs=1)
        net, data = module(package, RolloutSteps), DataLoader(flows(5), 2)
        run = trainer(package, monitor, logger=logger, max_epochs=2)
        run.fit(net, data, data)
        run.test(net, data, verbose=False)
        found.append(content(logger))
        np.testing.assert_allclose(monitor.errors, expected(5), rtol=1e-5)
    assert found[0] == found[1]
    held, _, numbers = found[1]
    assert [step for step, _ in held["val/error_over_time"]] == [2, 5]
    assert "test/l2re_over_time/mean" in held
    assert numbers["images"] >= 6


@BOTH
@pytest.mark.parametrize("batch_size", [1, 3])
def test_predictions_are_in_the_order_of_the_data_set(batch_size, package, trainer, tmp_path):
    import h5py

    data = DataLoader(flows(7), batch_size, sampler=[3, 6, 0, 2, 5, 1, 4])
    writer = PredictionWriter(tmp_path / "a.hdf5")
    trainer(package, writer).predict(module(package, RolloutSteps), data, return_predictions=False)
    with h5py.File(writer.written) as file:
        factors = file["channel 0"][:, 0, 0, 0]  # of the first given frame, which tells the trajectories apart
        assert file["trajectory"][...].tolist() == list(range(7))
    assert factors.tolist() == [1, 2, 3, 4, 5, 6, 7]


# ---- what the older package takes only of its own --------------------------------------------------------------------


def test_its_trainer_takes_no_modules_and_data_modules_of_ours(trainer):
    data = DigitsDataModule()
    error = older.utilities.exceptions.MisconfigurationException
    with pytest.raises(
        error, match=r"Trainer of DigitsDataModule .* Import `Trainer` and `LightningModule` from `light"
    ):
        trainer(older).fit(module(older), datamodule=data)
    for ours in (OperatorModule(Shift()), ImageClassifier(nn.Linear(4, 2), lr=0.1)):
        with pytest.raises(TypeError, match="`model` must be a `LightningModule`") as refused:
            trainer(older).fit(ours)
        said = re.search(r'\("(`model` [^"]+)"\)', type(ours).__doc__)
        assert str(refused.value).startswith(said[1])


def test_a_data_module_keeps_the_trainer_that_suits(trainer):
    data = DigitsDataModule()
    assert data.trainer is None
    data.trainer = run = trainer(newer)
    assert data.trainer is run


class OlderBalance(TempBalance, older.Callback):
    """Of both packages, as the card says."""


@pytest.mark.filterwarnings("ignore:.*has no logger to write to:UserWarning")
def test_its_command_line_takes_a_callback_that_is_of_both(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["train.py"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI's own, with jsonargparse 4.53
    callback = f"{OlderBalance.__module__}.OlderBalance"
    options = {"max_epochs": 1, "accelerator": "cpu", "logger": "false", "enable_progress_bar": "false"}
    arguments = [f"--trainer.{name}={value}" for name, value in options.items()]
    arguments += ["--trainer.enable_checkpointing=false", "--trainer.enable_model_summary=false"]
    arguments += [f"--trainer.callbacks+={callback}", "--trainer.callbacks.lr_max_ratio=3", "--model.lr=0.2"]
    cli = LightningCLI(OlderNet, args=["fit", *arguments], save_config_callback=None, seed_everything_default=False)
    (balance,) = (found for found in cli.trainer.callbacks if isinstance(found, TempBalance))
    assert max(balance.multipliers.values()) == pytest.approx(3)
    assert min(balance.multipliers.values()) == pytest.approx(0.5)
    assert all(math.isfinite(alpha) for alpha in balance.report.alphas.values())
    assert cli.trainer.optimizers[0].param_groups[0]["lr"] == 0.2
