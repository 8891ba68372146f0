"""A module whose rollouts have errors that are known in closed form, and data for it."""

from typing import NamedTuple

import lightning.pytorch as pl
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

GIVEN, FRAMES, CHANNELS = 3, 5, 2
GROWTH = 0.1 * (torch.arange(FRAMES)[:, None] + 1) * torch.tensor([1.0, 2.0])  # relative error, (frames, channels)


class Coordinates(NamedTuple):
    x: torch.Tensor | None
    y: torch.Tensor | None
    t: torch.Tensor | None


class Operator(pl.LightningModule):
    """Predicts the target times 1 + factor * GROWTH, the factor being the trajectory's first given value."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(3))
        self.dropout = nn.Dropout(0.5)

    def training_step(self, batch, batch_idx):
        return self.dropout(self.weight * batch[0].mean()).square().sum()

    def rollout(self, batch):
        x, y = batch
        growth = GROWTH.to(x.device)[: y.shape[3]]
        return y * (1 + x[:, :1, :1, :1, :1] * growth)

    def validation_step(self, batch, batch_idx, dataloader_idx=0):
        return {"given": batch[0], "prediction": self.rollout(batch), "target": batch[1]}

    def test_step(self, batch, batch_idx, dataloader_idx=0):
        return self.validation_step(batch, batch_idx)

    def predict_step(self, batch, batch_idx, dataloader_idx=0):
        return self.rollout(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


def flows(count=5, *, frames=FRAMES, size=(6, 4), seed=0):
    """A data set of pairs (given, following), whose trajectory i has factor i + 1."""
    generator = torch.Generator().manual_seed(seed)
    factors = torch.arange(1.0, count + 1)[:, None, None, None, None]
    x = factors.expand(count, *size, GIVEN, CHANNELS).clone()
    return TensorDataset(x, torch.randn(count, *size, frames, CHANNELS, generator=generator))


def loader(count=5, batch_size=2, **kwargs):
    return DataLoader(flows(count, **kwargs), batch_size=batch_size)


def expected(count=5):
    """Relative L2 error over `count` trajectories, (frames, channels)."""
    return GROWTH * (count + 1) / 2


class Flows(pl.LightningDataModule):
    """With names, times and units of its own."""

    channels = ("Vx", "density")
    coordinates = Coordinates(None, None, torch.arange(GIVEN + FRAMES) / 10)

    def __init__(self, count=5, batch_size=2):
        super().__init__()
        self.physics = {"eta": 0.01, "M": 0.1}
        self.count, self.size = count, batch_size

    def denormalize(self, fields):
        return 10 * fields

    def train_dataloader(self):
        return loader(self.count, self.size)

    val_dataloader = test_dataloader = predict_dataloader = train_dataloader


class Shift(nn.Module):
    """The last frame, moved by a cell and a little larger."""

    def __init__(self):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(1.01))

    def forward(self, x):
        return self.factor * x[:, :, :, -1:].roll(1, 1)
