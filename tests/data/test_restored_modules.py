"""Data modules and modules that a checkpoint makes again, with the settings of its training."""

from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_farms.data import CFDDataModule, DigitsDataModule, SimulationConfig
from lightning_farms.models import DPOT, ImageClassifier, OperatorModule
from tests.data.fields.labelled_flows import write_labelled

SIZES = {"img_size": 8, "patch_size": 4, "in_timesteps": 2, "embed_dim": 16, "depth": 1, "n_blocks": 2}


@pytest.fixture
def path(tmp_path):
    return write_labelled(tmp_path / "labelled.hdf5")


def saved(module, data, folder):
    trainer = Trainer(
        accelerator="cpu", max_epochs=1, limit_train_batches=1, limit_val_batches=0, logger=False,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(module, data)
    trainer.save_checkpoint(folder / "run.ckpt")
    torch.load(folder / "run.ckpt", weights_only=True)
    return folder / "run.ckpt"


def options(data):
    own = ("path", "batch_size", "stride", "channels", "normalize", "simulation", "skip", "seed", "cache_dir")
    return {name: getattr(data, name) for name in own}


class Still(LightningModule):
    """Learns nothing."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def training_step(self, batch, batch_idx):
        return self.weight**2

    def validation_step(self, batch, batch_idx):
        pass

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def test_flow_data_get_the_options_of_the_training(path, tmp_path):
    simulation = SimulationConfig(trajectories=10, resolution=8, frames=5)
    data = CFDDataModule(
        path, stride=2, channel_order="pdebench", normalize=True, in_timesteps=2, simulation=simulation, batch_size=3,
        skip={"labelled.hdf5": [1]}, seed=np.int64(4), cache_dir=tmp_path, test_fraction=np.float64(0.2),
    )  # fmt: skip
    file = saved(Still(), data, tmp_path)
    again = CFDDataModule.load_from_checkpoint(file)
    assert options(again) == options(data)
    fields = torch.rand(2, 4)
    assert torch.equal(again.denormalize(fields), data.denormalize(fields)), "its constants are those of the training"
    assert CFDDataModule.load_from_checkpoint(file, batch_size=7).batch_size == 7


class OneOfMany(CFDDataModule):
    """A user's own data module, with an argument that a checkpoint can hold and one that it cannot."""

    def __init__(self, folder, *, loss=torch.nn.functional.mse_loss, **kwargs):
        super().__init__(Path(folder) / "labelled.hdf5", **kwargs)
        self.folder, self.loss = folder, loss


def test_subclasses_get_their_own_arguments(path, tmp_path):
    again = OneOfMany.load_from_checkpoint(saved(Still(), OneOfMany(tmp_path, in_timesteps=2, stride=2), tmp_path))
    assert (again.path, again.stride, again.in_timesteps) == (path, 2, 2)


def test_a_module_that_holds_data_does_not_lend_them_its_arguments(path):
    class Holder(LightningModule):
        def __init__(self, batch_size):
            super().__init__()
            self.data = CFDDataModule(path, batch_size=3)

    assert Holder(64).data.hparams["batch_size"] == 3


def test_images_and_classifiers_get_the_options_of_the_training(tmp_path):
    data = DigitsDataModule(size=8, batch_size=600, seed=3)
    network = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(192, 10))
    file = saved(ImageClassifier(network, lr=np.float32(0.5), momentum=np.float64(0)), data, tmp_path)
    again = DigitsDataModule.load_from_checkpoint(file)
    assert (again.size, again.batch_size, again.seed) == (8, 600, 3)
    assert ImageClassifier.load_from_checkpoint(file, network=network).lr == 0.5
    with pytest.raises(TypeError, match=r"Expected argument `network`, since .*run\.ckpt does not tell how"):
        ImageClassifier.load_from_checkpoint(file)


def test_numbers_of_numpy_leave_a_checkpoint_that_can_be_read(path, tmp_path):
    data = CFDDataModule(path, in_timesteps=2)
    settings = {"lr": np.float64(1e-3), "noise_seed": np.int64(2), "weight_decay": np.float32(0)}
    file = saved(OperatorModule(DPOT(**SIZES), **settings), data, tmp_path)
    again = OperatorModule.load_from_checkpoint(file, network=DPOT.from_checkpoint(file))
    assert (again.lr, again.noise_seed) == (1e-3, 2)
    with pytest.raises(TypeError, match=r"for a DPOT: `network=DPOT.from_checkpoint\(path\)`"):
        OperatorModule.load_from_checkpoint(file)
