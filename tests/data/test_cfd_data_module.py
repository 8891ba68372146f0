import json
import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.utils.data import get_worker_info

from lightning_farms.data import CFDDataModule, SimulationConfig, epoch_windows, writer

TRAJECTORIES, FRAMES = 12, 8
SIMULATION = SimulationConfig(trajectories=10, resolution=8, frames=5)

quiet_trainer = pytest.mark.filterwarnings(
    "ignore:The '.*_dataloader' does not have many workers",
    "ignore:Trying to infer the `batch_size`",
    "ignore:.*does not have a `configure_optimizers`",
    "ignore:Checkpoint directory .* exists and is not empty",
    # Lightning 2.6's own call of torch's pytree.
    "ignore:`isinstance\\(treespec, LeafSpec\\)` is deprecated:FutureWarning",
)


def label(trajectory, frame):
    return 100 * trajectory + frame


def write_labelled(path, trajectories=TRAJECTORIES, frames=FRAMES, size=(8, 8)):
    """Each value of the density says which trajectory and frame it belongs to."""
    labels = np.add.outer(100 * np.arange(trajectories), np.arange(frames)).astype(np.float32)
    with h5py.File(path, "w") as file:
        for channel, name in enumerate(("density", "Vx", "Vy", "pressure")):
            file[name] = np.broadcast_to((labels + 0.1 * channel)[:, :, None, None], (*labels.shape, *size))
    return path


@pytest.fixture
def path(tmp_path):
    return write_labelled(tmp_path / "labelled.hdf5")


def module(path, **options):
    return CFDDataModule(path, **({"in_timesteps": 3, "out_timesteps": 2, "batch_size": 4} | options))


def labels(batch):
    """Density of the first input frame and of the first target frame, one pair for each item."""
    x, y = batch
    return [(int(a), int(b)) for a, b in zip(x[:, 0, 0, 0, 2], y[:, 0, 0, 0, 2], strict=True)]


def test_training_items_are_windows_of_consecutive_frames(path):
    data = module(path)
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, y.shape, x.dtype) == ((4, 8, 8, 3, 4), (4, 8, 8, 2, 4), torch.float32)
    frames = torch.cat((x, y), dim=3)[:, 0, 0, :, 2]
    assert torch.equal(frames - frames[:, :1], torch.arange(5.0).expand(4, 5))
    torch.testing.assert_close(x[..., 0] - x[..., 2], torch.full_like(x[..., 0], 0.1), rtol=0, atol=1e-3)
    assert (data.train_items, data.val_items) == (11, 1)


def test_epoch_shows_each_training_trajectory_with_the_drawn_windows(path):
    data = module(path, seed=7, windows_per_trajectory=2)
    data.setup("fit")
    loader = data.train_dataloader()
    loader.sampler.set_epoch(3)
    seen = [first for batch in loader for first, _ in labels(batch)]
    assert seen == [label(key.item // 2, key.start) for key in epoch_windows(22, 4, seed=7, epoch=3)]


@pytest.mark.parametrize(
    ("stage", "loader"),
    [("validate", "val_dataloader"), ("test", "test_dataloader"), ("predict", "predict_dataloader")],
)
def test_evaluation_items_are_whole_trajectories(path, stage, loader):
    data = module(path, test_fraction=0.25)
    data.setup(stage)
    batches = list(getattr(data, loader)())
    x, y = batches[0]
    assert len(batches) == 1
    assert (x.shape, y.shape) == ((3, 8, 8, 3, 4), (3, 8, 8, 5, 4))
    assert labels(batches[0]) == [(label(t, 0), label(t, 3)) for t in (9, 10, 11)]


def test_options_of_the_split_and_of_the_channels(path):
    data = module(path, split="pdebench", val_fraction=0.2, stride=4, channel_order="pdebench")
    data.setup("fit")
    data.setup("test")
    x, _ = next(iter(data.val_dataloader()))
    assert x.shape == (2, 2, 2, 3, 4)
    assert x[:, 0, 0, 0, 0].tolist() == [1000.0, 1100.0]
    assert (data.train_items, data.val_items, data.test_items) == (9, 2, 1)
    assert data.channels == ("density", "pressure", "Vx", "Vy")


def test_workers_give_the_same_batches(path):
    batches = []
    for workers in (0, 2):
        data = module(path, num_workers=workers)
        data.setup("fit")
        batches.append([labels(batch) for batch in data.train_dataloader()])
    assert batches[0] == batches[1]
    assert len(batches[0]) == 3


def test_loaders_leave_the_global_generator_alone(path):
    data = module(path)
    data.setup("fit")
    before = torch.get_rng_state()
    next(iter(data.train_dataloader()))
    next(iter(data.val_dataloader()))
    assert torch.equal(before, torch.get_rng_state())


def test_pickle_after_use(path):
    data = module(path)
    data.setup("fit")
    expected = [labels(batch) for batch in data.train_dataloader()]
    copy = pickle.loads(pickle.dumps(data))
    assert [labels(batch) for batch in copy.train_dataloader()] == expected


class Recorder(LightningModule):
    """Learns nothing; records the batches that it is given."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = {}

    def training_step(self, batch, batch_index):
        self.seen.setdefault(self.current_epoch, []).append(labels(batch))
        return self.weight.square().sum()

    def validation_step(self, batch, batch_index):
        assert get_worker_info() is None

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class ScheduledRecorder(Recorder):
    """Asks for the number of steps, as OneCycle schedules do, so that Lightning builds the loaders early."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches > 0
        return super().configure_optimizers()


def fit(path, folder, *, epochs, resume=None, data=None, model=Recorder, **options):
    checkpoint = ModelCheckpoint(folder, filename="last", enable_version_counter=False)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        callbacks=[checkpoint],
        enable_progress_bar=False,
        enable_model_summary=False,
        **options,
    )
    model = model()
    trainer.fit(model, datamodule=data or module(path), ckpt_path=resume)
    return model.seen


@quiet_trainer
@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("model", [Recorder, ScheduledRecorder])
def test_resumed_epochs_have_the_batches_of_a_straight_run(path, tmp_path, workers, model):
    straight = fit(path, tmp_path / "straight", epochs=4, data=module(path, num_workers=workers), model=model)
    fit(path, tmp_path / "half", epochs=2, data=module(path, num_workers=workers), model=model)
    torch.manual_seed(123)
    resumed = fit(
        path,
        tmp_path / "half",
        epochs=4,
        resume=tmp_path / "half" / "last.ckpt",
        data=module(path, num_workers=workers),
        model=model,
    )
    assert sorted(resumed) == [2, 3]
    assert resumed == {epoch: straight[epoch] for epoch in (2, 3)}
    assert all(straight[epoch] != straight[epoch + 1] for epoch in range(3))
    for epoch, batches in straight.items():
        drawn = epoch_windows(11, 4, seed=0, epoch=epoch)
        assert [first for batch in batches for first, _ in batch] == [label(key.item, key.start) for key in drawn]


@quiet_trainer
def test_a_new_run_after_a_resumed_one_starts_at_the_first_epoch(path, tmp_path):
    data = module(path, num_workers=1)
    first = fit(path, tmp_path, epochs=1, data=data, model=ScheduledRecorder)
    fit(path, tmp_path, epochs=2, data=data, model=ScheduledRecorder, resume=tmp_path / "last.ckpt")
    assert fit(path, tmp_path, epochs=1, data=data, model=ScheduledRecorder) == first


@quiet_trainer
@pytest.mark.filterwarnings("ignore:You requested to overfit but enabled train dataloader shuffling")
def test_overfitting_one_batch_repeats_it(path, tmp_path):
    """Lightning then puts plain numbers in place of our keys."""
    seen = fit(path, tmp_path, epochs=2, overfit_batches=1)
    assert seen[0] == seen[1] == [[(label(t, 0), label(t, 3)) for t in range(4)]]


def test_two_processes_share_each_epoch(path, tmp_path):
    script = f"""
import json, os, sys, torch
torch.set_num_threads(1)
from lightning.pytorch import LightningModule, Trainer
from lightning_farms.data import CFDDataModule

class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = [[], []]

    def training_step(self, batch, batch_index):
        self.seen[self.current_epoch] += batch[0][:, 0, 0, 0, 2].int().tolist()
        return self.weight.square().sum()

    def on_train_end(self):
        with open(f"{{sys.argv[1]}}/rank{{self.global_rank}}.json", "w") as file:
            json.dump(self.seen, file)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)

if __name__ == "__main__":
    data = CFDDataModule({str(path)!r}, in_timesteps=3, out_timesteps=2, batch_size=2, seed=5)
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy="ddp_fork", max_epochs=2, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
    )
    trainer.fit(Model(), datamodule=data)
"""
    (tmp_path / "script.py").write_text(script)
    run = subprocess.run(
        [sys.executable, tmp_path / "script.py", tmp_path], check=False, capture_output=True, text=True, timeout=120
    )
    assert run.returncode == 0, run.stderr
    ranks = [json.loads((tmp_path / f"rank{rank}.json").read_text()) for rank in (0, 1)]
    for epoch in (0, 1):
        drawn = [label(key.item, key.start) for key in epoch_windows(11, 4, seed=5, epoch=epoch)]
        assert ranks[0][epoch] == drawn[0::2]
        # 11 items for two processes: the last one's second half is filled up with the first item.
        assert ranks[1][epoch] == drawn[1::2] + drawn[:1]


@pytest.fixture
def simulations(monkeypatch):
    """Counts the simulated sets."""
    calls = []
    simulate = writer.simulate_cfd
    monkeypatch.setattr(writer, "simulate_cfd", lambda *args, **options: calls.append(1) or simulate(*args, **options))
    return calls


def simulated(cache, **options):
    return CFDDataModule(cache_dir=cache, in_timesteps=3, simulation=SIMULATION, **options)


def test_simulates_once_and_then_reads_the_cache(tmp_path, simulations):
    for _ in range(2):
        data = simulated(tmp_path / "cache")
        data.prepare_data()
        data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, y.shape) == ((8, 8, 8, 3, 4), (8, 8, 8, 1, 4))
    assert (x[..., 2:] > 0).all()
    assert simulations == [1]


def test_each_setting_has_a_cache_file_of_its_own(tmp_path):
    changes = {
        "trajectories": 11,
        "resolution": 9,
        "frames": 6,
        "mach": 0.10000001,
        "eta": 0.02,
        "zeta": 0.02,
        "seed": 1,
    }
    settings = [SIMULATION, *(SimulationConfig(**{**vars(SIMULATION), name: value}) for name, value in changes.items())]
    names = {CFDDataModule(cache_dir=tmp_path, simulation=config).data_path.name for config in settings}
    assert len(names) == len(vars(SIMULATION)) + 1
    assert any(name.startswith("2D_CFD_Sim_M0.1_Eta0.01_Zeta0.01_periodic_8_n10_seed0_") for name in names)


def test_a_simulation_that_fails_midway_leaves_nothing_and_is_done_again(tmp_path, monkeypatch, simulations):
    data = simulated(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(writer, "_write_part", lambda *args: (_ for _ in ()).throw(RuntimeError("power cut")))
        with pytest.raises(RuntimeError, match="power cut"):
            data.prepare_data()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"simulated set .* to exist, but it does not: call `prepare_data\(\)`"):
        data.setup("fit")
    data.prepare_data()
    data.setup("fit")
    assert simulations == [1, 1]


def test_default_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CFDDataModule().data_path.parent == tmp_path / "lightning_farms"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert CFDDataModule().data_path.parent == tmp_path / "home" / ".cache" / "lightning_farms"


def test_image_size_is_known_before_any_data(tmp_path, simulations, path):
    data = simulated(tmp_path, stride=2)
    assert (data.img_size, data.n_channels, data.in_timesteps, data.out_timesteps) == (4, 4, 3, 1)
    assert simulations == []
    assert module(path, stride=4).img_size == 2


@pytest.mark.parametrize(
    ("file", "options", "stage", "message"),
    [
        ({}, {"in_timesteps": 7}, "fit", r"at least `in_timesteps` \+ `out_timesteps` = 7 \+ 2 frames, but it has 8"),
        ({}, {"in_timesteps": 8}, "test", r"= 8 \+ 1 frames, but it has 8"),
        (
            {"trajectories": 4},
            {},
            "fit",
            "the val split .* none of the 4 in the file: the test traj.* Raise `test_fraction` to at least 0.25",
        ),
        (
            {"trajectories": 4},
            {},
            "test",
            "the test split .* none of the 4 in the file: `test_fraction` 0.1 of 4 is less",
        ),
        ({"trajectories": 8}, {"test_fraction": 0.12}, "test", "Raise `test_fraction` to at least 0.13"),
        ({"trajectories": 8}, {"test_fraction": 0.25, "val_fraction": 0.1}, "fit", "`val_fraction` to at least 0.17"),
        ({}, {"train_fraction": 0.05}, "fit", "the train split .* none of the 12 in the file: raise `train_fraction`"),
        ({"size": (8, 6)}, {}, "fit", r"as many cells along x as along y, but got \(8, 6\)"),
        ({}, {"stride": 3}, "fit", "`stride` to divide the resolution 8 of the data, but got 3"),
        ({}, {}, "training", r"`stage` to be one of \['fit', .*\], but got 'training'"),
    ],
)
def test_unsuitable_data_is_refused_at_setup(tmp_path, file, options, stage, message):
    data = module(write_labelled(tmp_path / "file.hdf5", **file), **options)
    with pytest.raises(ValueError, match=message):
        data.setup(stage)


def test_file_errors_come_at_setup(tmp_path):
    with pytest.raises(FileNotFoundError, match="existing file, but found none at"):
        module(tmp_path / "absent.hdf5").setup("fit")


@pytest.mark.parametrize("workers", [0, 1])
def test_nan_is_raised_when_read_also_from_a_worker(path, workers):
    with h5py.File(path, "a") as file:
        file["Vy"][11, 6] = np.nan
    data = module(path, num_workers=workers)
    data.setup("test")
    with pytest.raises(ValueError, match=r"`Vy` of .*labelled.hdf5 to be finite, but trajectory 11"):
        next(iter(data.test_dataloader()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "`batch_size` to be at least 1"),
        ({"in_timesteps": 0}, "`in_timesteps` to be at least 1"),
        ({"out_timesteps": 0}, "`out_timesteps` to be at least 1"),
        ({"windows_per_trajectory": 0}, "`windows_per_trajectory` to be at least 1"),
        ({"stride": 0}, "`stride` to be at least 1"),
        ({"num_workers": -1}, "`num_workers` to be at least 0"),
        ({"seed": -1}, "`seed` to be at least 0"),
        ({"split": "random"}, "`split` to be 'dpot' or 'pdebench'"),
        ({"channel_order": "xyz"}, "`channel_order` to be one of"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        CFDDataModule("unread.hdf5", **options)


@pytest.mark.parametrize("loader", ["train_dataloader", "val_dataloader", "test_dataloader"])
def test_loaders_before_setup(path, loader):
    with pytest.raises(RuntimeError, match=r"Expected `setup` to have built the .* data, but it has not"):
        getattr(module(path), loader)()


def test_command_line_sets_every_option(path):
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(CFDDataModule, "data")
    parsed = parser.parse_args(
        [f"--data.path={path}", "--data.simulation.resolution=64", "--data.split=pdebench", "--data.batch_size=2"]
    )
    data = parser.instantiate(parsed).data
    assert (data.path, data.simulation, data.batch_size) == (path, SimulationConfig(resolution=64), 2)
    text = parser.format_help()
    assert "--data.simulation.mach" in text
    assert "because DPOT's pre-training data" in " ".join(text.split())
