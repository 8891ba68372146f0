"""Two models, their data, a Trainer that logs into tmp_path, and what updates really use."""

import csv
import threading
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms import FARMS, WholeMatrix, analyze


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.1)


class SmallNet(pl.LightningModule):
    """conv - norm - linear - linear, regression; the optimizer and the scheduler are given."""

    def __init__(self, make_optimizer=None, make_scheduler=None, interval="step"):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.hidden = nn.Linear(8 * 16, 24)
        self.head = nn.Linear(24, 12)
        self.scale = nn.Parameter(torch.ones(1))
        self.make_optimizer = make_optimizer or sgd
        self.make_scheduler = make_scheduler
        self.interval = interval

    def forward(self, x):
        x = self.norm(self.conv(x)).relu().flatten(1)
        return self.head(self.hidden(x).relu()) * self.scale

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.mse_loss(self(x), y)
        self.log("loss", loss)
        return loss

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters())
        if self.make_scheduler is None:
            return optimizer
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.make_scheduler(optimizer), "interval": self.interval},
        }


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def small_net():
    def make(**kwargs):
        torch.manual_seed(1)
        return SmallNet(**kwargs)

    return make


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(16, 3, 6, 6, generator=generator)
    y = torch.randn(16, 12, generator=generator)
    return DataLoader(TensorDataset(x, y), batch_size=4)


@pytest.fixture
def logged():
    """What a run's CSVLogger wrote: {key: its values in order}."""

    def read(trainer):
        values = {}
        with Path(trainer.logger.experiment.metrics_file_path).open() as file:
            for row in csv.DictReader(file):
                for key, value in row.items():
                    values.setdefault(key, []).extend([float(value)] if value else [])
        return values

    return read


@pytest.fixture
def make_trainer(tmp_path):
    def make(callbacks, **kwargs):
        settings = {
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 1,
            "logger": CSVLogger(tmp_path / "csv"),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "default_root_dir": tmp_path,
            "log_every_n_steps": 1,
        }
        return pl.Trainer(callbacks=callbacks, **{**settings, **kwargs})

    return make


# ---- which analyses are made -----------------------------------------------------------------------------------------


class _Noted:
    """A method that notes the analyses of a SmallNet, which has one convolution, and may call a function in them."""

    in_background, others = [], []  # the methods, in order
    first = None  # called by the analyses in the background

    def windows(self, rows, columns, kind):
        if kind == "convolution":
            if threading.current_thread() is threading.main_thread():
                self.others.append(self)
            else:
                self.in_background.append(self)
                if _Noted.first:
                    _Noted.first()
        return super().windows(rows, columns, kind)


class NotedFARMS(_Noted, FARMS):
    pass


class NotedWholeMatrix(_Noted, WholeMatrix):
    pass


@pytest.fixture
def noted():
    """Analyses with the methods above: in_background and others; first() is called by the former."""
    _Noted.in_background, _Noted.others, _Noted.first = [], [], None
    yield _Noted
    _Noted.first = None


def in_order(folder):
    """A TensorBoard run's folder, its files named so that they are read as written.

    They are read by name, in which the tenth writer of a process comes before the ninth of the same second; events are
    then in another order, and those of later steps are dropped where steps go back.
    """
    for file in Path(folder).glob("events.out.tfevents.*"):
        start, _, number = file.name.rpartition(".")
        file.rename(file.with_name(f"{start}.{int(number):06}"))
    return str(folder)


# ---- what updates use ------------------------------------------------------------------------------------------------


class Tower(pl.LightningModule):
    """Linear layers of different spectra, with biases, and a norm after each."""

    def __init__(self, tails=(1.0, 1.3, 1.6, 2.0, 2.5, 3.0), optimizer=torch.optim.SGD, **options):
        super().__init__()
        torch.manual_seed(3)
        self.options = {"lr": 1e-3, **options}
        self.optimizer_class = optimizer
        self.layers = nn.Sequential()
        for tail in tails:
            linear = nn.Linear(24, 24)
            with torch.no_grad():  # a power law of its own for each
                u, _, v = torch.linalg.svd(linear.weight)
                linear.weight.copy_(u @ torch.diag(torch.arange(1, 25) ** (-0.4 * tail)) @ v)
            self.layers.extend([linear, nn.LayerNorm(24)])
        self.double()

    def training_step(self, batch, batch_idx):
        x = batch[0].flatten(1)[:, :24].double()
        return self.layers(x).square().mean()

    def configure_optimizers(self):
        return self.optimizer_class(self.parameters(), **self.options)


def is_linear(name):
    """Whether a parameter of a Tower is of a linear layer, not of a norm."""
    return int(name.split(".")[1]) % 2 == 0


def weights(multipliers):
    """{layer: multiplier} of a Tower's weights."""
    return {
        name[: -len(".weight")]: m for name, m in multipliers.items() if is_linear(name) and name.endswith("weight")
    }


class Used(pl.Callback):
    """What each step of plain SGD multiplied the base rate by, for each parameter, in float64."""

    def __init__(self):
        self.multipliers = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.before = {name: p.detach().clone() for name, p in pl_module.named_parameters()}

    def on_train_batch_end(self, trainer, pl_module, *args):
        base = trainer.optimizers[0].param_groups[0]["lr"]
        rates = {}
        for name, p in pl_module.named_parameters():
            rates[name] = (((self.before[name] - p) * p.grad).sum() / p.grad.square().sum() / base).item()
        self.multipliers.append(rates)


@pytest.fixture
def used(loader, make_trainer):
    def run(callback, model=None, max_epochs=1, extra=()):
        record = Used()
        trainer = make_trainer([callback, record, *extra], max_epochs=max_epochs, precision="64-true")
        trainer.fit(model or Tower(), loader)
        return record.multipliers

    return run


class Alphas(pl.Callback):
    """Alphas of the weights before each epoch."""

    def __init__(self):
        self.by_epoch = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.by_epoch.append(analyze(pl_module).alphas)
