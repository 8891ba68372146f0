"""Networks on small fields whose rollout is known in closed form, their data, and a quiet Trainer."""

from typing import NamedTuple

import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

X = Y = 4
GIVEN, CHANNELS = 3, 2


class Output(NamedTuple):
    prediction: torch.Tensor
    logits: torch.Tensor


class Doubling(nn.Module):
    """Next frames: 2, 4, ... times the last given one, so that a rollout is a known geometric series."""

    def __init__(self, out_timesteps=1, named=False):
        super().__init__()
        self.factor = nn.Parameter(torch.tensor(2.0))
        self.out_timesteps = out_timesteps
        self.named = named

    def forward(self, x):
        frames = [x[:, :, :, -1:] * self.factor ** (k + 1) for k in range(self.out_timesteps)]
        prediction = torch.cat(frames, dim=3)
        return Output(prediction, prediction.mean(dim=(1, 2, 3))) if self.named else prediction


class Linear(nn.Module):
    """A small trainable network with DPOT's attributes."""

    def __init__(self, img_size: int = X, in_timesteps: int = GIVEN, in_channels: int = CHANNELS):
        super().__init__()
        self.img_size, self.in_timesteps, self.in_channels = img_size, in_timesteps, in_channels
        self.mix = nn.Linear(in_timesteps * in_channels, in_channels)

    def forward(self, x):
        return self.mix(x.flatten(3))[:, :, :, None]


class Fields(LightningDataModule):
    """Decaying random fields: 8 training samples, 3 validation samples of five next frames."""

    def __init__(self, batch_size=2, train_frames=1, size=X, equal=False):
        super().__init__()
        self.batch_size, self.train_frames, self.size, self.equal = batch_size, train_frames, size, equal

    def _loader(self, samples, frames, seed):
        generator = torch.Generator().manual_seed(seed)
        start = 1 + torch.rand(samples, self.size, self.size, 1, CHANNELS, generator=generator)
        if self.equal:
            start = start[:1].expand_as(start)
        time = torch.arange(GIVEN + frames).reshape(1, 1, 1, -1, 1)
        u = start * 0.9**time
        return DataLoader(TensorDataset(u[:, :, :, :GIVEN], u[:, :, :, GIVEN:]), batch_size=self.batch_size)

    def train_dataloader(self):
        return self._loader(8, self.train_frames, 0)

    def val_dataloader(self):
        return self._loader(3, 5, 1)

    test_dataloader = val_dataloader
    predict_dataloader = val_dataloader


def trainer(folder, **settings):
    settings = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, **settings}
    return Trainer(
        accelerator="cpu",
        devices=1,
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )


def snapshot(module):
    return {name: value.clone() for name, value in module.state_dict().items()}
