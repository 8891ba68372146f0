"""A small model with a norm, its data, and a Trainer that logs into tmp_path."""

import csv
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


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
