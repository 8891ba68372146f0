"""What a network is pre-trained on: data laid out and scaled as those of the main run."""

from types import SimpleNamespace

import h5py
import pytest
import torch

from lightning_farms.cli.train.pretraining import Pretraining, pretrain, pretrained_path
from lightning_farms.data import CFDDataModule, SimulationConfig, simulate_to_file
from lightning_farms.models import DPOT

NETWORK = {"img_size": 8, "patch_size": 4, "in_timesteps": 2, "embed_dim": 8, "depth": 1, "n_blocks": 2}
SET = SimulationConfig(trajectories=3, resolution=8, frames=7)


@pytest.fixture
def data(tmp_path):
    def make(path=None, **options):
        return CFDDataModule(path, cache_dir=tmp_path, in_timesteps=2, simulation=SET, **options)

    return make


@pytest.fixture
def regime(tmp_path):
    """The data that a network would be pre-trained on."""

    def find(pretraining, data, **sizes):
        seen = []
        trainer = SimpleNamespace(fit=lambda module, datamodule: seen.append(datamodule))
        pretrain(pretraining, DPOT(**NETWORK | sizes), data, trainer, tmp_path / "weights.pth")
        return seen[0]

    return find


def first_batch(data):
    data.prepare_data()
    data.setup("fit")
    return torch.cat(next(iter(data.train_dataloader())), dim=3)


def test_frames_and_units_are_those_of_the_data(data, regime):
    raw = first_batch(regime(Pretraining(simulation=SET), data()))
    scaled = regime(Pretraining(simulation=SET), data(normalize=True))
    torch.testing.assert_close(scaled.denormalize(first_batch(scaled)), raw)
    assert first_batch(scaled).mean().abs() < 0.3 < raw.mean()
    assert regime(Pretraining(simulation=SET), data(time_stride=2)).time_stride == 2


def test_the_weights_are_kept_apart(data):
    network = DPOT(**NETWORK)
    options = [{}, {"normalize": True}, {"time_stride": 2}, {"normalize": True, "time_stride": 2}]
    paths = {pretrained_path(Pretraining(simulation=SET), network, data(**each)) for each in options}
    assert len(paths) == 4
    arithmetic = [None, {"precision": "bf16-mixed"}, {"gradient_clip_val": 1.0}]
    paths = {pretrained_path(Pretraining(simulation=SET), network, data(), each) for each in arithmetic}
    assert len(paths) == 3


def test_the_weights_of_other_fields_of_a_file_are_kept_apart(data, tmp_path):
    """Of the same channels by name."""
    file = tmp_path / "own.hdf5"
    simulate_to_file(file, SimulationConfig(trajectories=3, resolution=8, frames=7), progress=False)
    network, pretraining = DPOT(**NETWORK, in_channels=1, out_channels=1), Pretraining(path=str(file))
    paths = {pretrained_path(pretraining, network, data(file, fields={"u": name})) for name in ("Vx", "Vy")}
    assert len(paths) == 2


def test_a_file_with_the_fields_of_the_data(data, regime, tmp_path):
    simulate_to_file(tmp_path / "own.hdf5", SimulationConfig(trajectories=3, resolution=16, frames=7), progress=False)
    with h5py.File(tmp_path / "own.hdf5", "a") as file:
        file["wind"] = file.pop("Vx")[...]
        del file["Vy"], file["density"], file["pressure"]
    main = data(tmp_path / "own.hdf5", stride=2, fields={"u": "wind"})
    found = regime(Pretraining(path=str(tmp_path / "own.hdf5")), main, in_channels=1, out_channels=1)
    assert (found.channels, found.img_size, first_batch(found).shape[-1]) == (("u",), 8, 1)
    with pytest.raises(ValueError, match=r"a set would be simulated, of channels \['Vx', .* and not \['u'\]"):
        regime(Pretraining(), main, in_channels=1, out_channels=1)


def test_components_are_those_of_a_checkpoint():
    assert Pretraining(checkpoint="tiny", components=["blocks"]).components == ["blocks"]
    with pytest.raises(
        ValueError, match=r"`checkpoint` .* to be given with `components`, but got \['blocks'\] of none"
    ):
        Pretraining(components=["blocks"])
