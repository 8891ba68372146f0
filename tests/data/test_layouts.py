"""Files of the layouts that people bring: read, trained on and tested."""

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_farms.data import CFDDataModule, PDEBenchFile
from lightning_farms.models import OperatorModule


class Last(nn.Module):
    """Predicts the last frame again, but for a factor."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.gain * x[:, :, :, -1:]


def trained_and_tested(data):
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    module = OperatorModule(Last(), scheduler="none")
    run = Trainer(**quiet, max_epochs=1, enable_checkpointing=False, num_sanity_val_steps=0)
    run.fit(module, datamodule=data)
    assert module.network.gain != 1
    return run.test(module, datamodule=data, verbose=False)[0]["test/l2re"]


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:.*number of training batches:UserWarning")
@pytest.mark.parametrize("channels", [1, 2])
def test_a_group_for_each_seed(tmp_path, channels):
    """PDEBench's shallow water (one channel) and diffusion-reaction (two): 0000/data of shape (T, X, Y, C)."""
    values = np.random.RandomState(0).standard_normal((12, 6, 8, 8, channels)).astype(np.float32)
    with h5py.File(tmp_path / "2D.h5", "w") as file:
        for number, flow in enumerate(values):
            file[f"{number:04d}/data"] = flow
            file[f"{number:04d}/grid/t"] = 0.5 * np.arange(6)
            file[f"{number:04d}/grid/x"] = np.arange(8.0)
    fields = {f"u{channel}": f"*/data[{channel}]" for channel in range(channels)}
    file = PDEBenchFile(tmp_path / "2D.h5", fields=fields)
    assert file.shape == (12, 6, 8, 8)
    assert file.t.tolist() == [0, 0.5, 1, 1.5, 2, 2.5]
    np.testing.assert_array_equal(file.read(11, 1, 4).numpy(), values[11, 1:4].transpose(1, 2, 0, 3))
    data = CFDDataModule(tmp_path / "2D.h5", fields=fields, in_timesteps=3)
    assert 0.5 < trained_and_tested(data) < 3


def test_a_group_that_differs_or_is_empty(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["0000/data"] = np.ones((6, 8, 8, 1), np.float32)
        file.create_dataset("0001/data", (6, 8, 8, 1), "f4")
    made_up = PDEBenchFile(tmp_path / "a.h5", fields={"h": "*/data[0]"})
    with pytest.raises(ValueError, match=r"trajectory 1 of .*a.h5 to be stored, but `\*/data` was never written"):
        made_up.read(1)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["0002/data"] = np.ones((5, 8, 8, 1), np.float32)
    with pytest.raises(ValueError, match=r"all datasets `\*/data` of .* to be alike, but `0002/data`, of shape \(5, 8"):
        PDEBenchFile(tmp_path / "a.h5", fields={"h": "*/data[0]"})


@pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning")
def test_incompressible_flow(tmp_path):
    """PDEBench's: velocity (B, T, X, Y, 2), and forces that stay."""
    values = np.random.RandomState(1).standard_normal((4, 6, 8, 8, 2)).astype(np.float32)
    with h5py.File(tmp_path / "ns_incom.h5", "w") as file:
        file["velocity"] = values
        file["force"] = np.zeros((4, 8, 8, 2), np.float32)
    fields = {"vx": "velocity[0]", "vy": "velocity[1]"}
    data = CFDDataModule(tmp_path / "ns_incom.h5", fields=fields, in_timesteps=3, test_fraction=0.25)
    assert 0.5 < trained_and_tested(data) < 3
    np.testing.assert_array_equal(
        PDEBenchFile(tmp_path / "ns_incom.h5", fields=fields).read(3)[..., 1, 1], values[3, 1, ..., 1]
    )
