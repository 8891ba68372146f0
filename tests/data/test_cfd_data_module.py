import pickle
from itertools import pairwise
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from jsonargparse import ArgumentParser

from lightning_farms.data import CFDDataModule, SimulationConfig, epoch_windows
from tests.data.fields.labelled_flows import label, labels, module, write_labelled

SIMULATION = SimulationConfig(trajectories=10, resolution=8, frames=5)


@pytest.fixture
def path(tmp_path):
    return write_labelled(tmp_path / "labelled.hdf5")


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
    [("validate", "val_dataloader"), ("test", "test_dataloader")],
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


def test_several_predictions_in_a_training_item(path):
    data = module(path, out_timesteps=2, autoregressive_steps=2)
    data.setup("fit")
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape[3], y.shape[3], data.out_timesteps) == (3, 4, 2)
    assert torch.equal(y[:, 0, 0, :, 2] - x[:, 0, 0, :1, 2], torch.arange(3.0, 7.0).expand(4, 4))


def test_stride_in_time(path):
    data = module(path, in_timesteps=2, out_timesteps=1, time_stride=3, test_fraction=0.25, seed=3)
    data.setup("fit")
    seen = [labels(batch) for epoch in range(20) for batch in epoch_of(data.train_dataloader(), epoch)]
    assert {first % 100 for batch in seen for first, _ in batch} == {0, 1}, "windows may start between the strides"
    assert {target - first for batch in seen for first, target in batch} == {6}
    x, y = next(iter(data.val_dataloader()))
    assert (x[0, 0, 0, :, 2] % 100).tolist() == [0, 3]
    assert (y[0, 0, 0, :, 2] % 100).tolist() == [6]


def epoch_of(loader, epoch):
    loader.sampler.set_epoch(epoch)
    return list(loader)


def test_smaller_fractions_are_parts_of_larger_ones_and_leave_the_test_alone(path):
    trained, tested = [], []
    for fraction in (0.1, 0.3, 0.6, 1.0):
        data = module(path, train_fraction=fraction, subset_seed=4)
        data.setup("fit")
        trained.append({first // 100 for batch in data.train_dataloader() for first, _ in labels(batch)})
        tested.append([labels(batch) for batch in data.val_dataloader()])
    assert [len(numbers) for numbers in trained] == [1, 3, 6, 11]
    assert all(smaller < larger for smaller, larger in pairwise(trained))
    assert all(each == tested[0] for each in tested)


def test_workers_give_the_same_batches(path):
    batches = []
    for workers in (0, 2):
        data = module(path, num_workers=workers)
        data.setup("fit")
        batches.append([labels(batch) for batch in data.train_dataloader()])
    assert batches[0] == batches[1]
    assert len(batches[0]) == 3


@pytest.mark.slow
@pytest.mark.parametrize("method", ["spawn", "forkserver"])
def test_workers_that_are_not_forked_give_the_same_items(path, method):
    """As macOS and Windows start them: everything is pickled, and handles are opened anew."""
    options = {"augment": "all", "noise": 0.1, "normalize": True, "test_fraction": 0.25}
    seen = []
    before = torch.multiprocessing.get_start_method()
    torch.multiprocessing.set_start_method(method, force=True)
    try:
        for workers in (0, 2):
            data = module(path, num_workers=workers, vectors=[["Vx", "Vy"]], **options)
            data.setup("fit")
            data.setup("predict")
            loaders = (data.train_dataloader(), data.val_dataloader(), data.predict_dataloader())
            seen.append([tensor for loader in loaders for batch in loader for tensor in batch])
            assert data._train.identities.all(), "what a worker has read is known to the others"
    finally:
        torch.multiprocessing.set_start_method(before, force=True)
    assert len(seen[0]) == len(seen[1])
    assert all(torch.equal(a.nan_to_num(), b.nan_to_num()) for a, b in zip(*seen, strict=True))


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


def simulated(cache, **options):
    return CFDDataModule(cache_dir=cache, in_timesteps=3, simulation=SIMULATION, **options)


def test_simulates_once_and_then_reads_the_cache(tmp_path):
    states = []
    for _ in range(2):
        data = simulated(tmp_path / "cache")
        data.prepare_data()
        data.setup("fit")
        states.append((data.data_path.stat().st_ino, data.data_path.stat().st_mtime_ns))
    x, y = next(iter(data.train_dataloader()))
    assert (x.shape, y.shape) == ((8, 8, 8, 3, 4), (8, 8, 8, 1, 4))
    assert (x[..., 2:] > 0).all()
    assert states[0] == states[1], "a set that is simulated again is another file"


def test_each_setting_has_a_cache_file_of_its_own(tmp_path):
    changes = {
        "trajectories": 11,
        "resolution": 9,
        "frames": 6,
        "mach": 0.10000001,
        "eta": 0.02,
        "zeta": 0.02,
        "stress": "full",
        "windowed_share": 0.0,
        "seed": 1,
        "duration": 0.5,
    }
    settings = [SIMULATION, *(SimulationConfig(**{**vars(SIMULATION), name: value}) for name, value in changes.items())]
    names = {CFDDataModule(cache_dir=tmp_path, simulation=config).data_path.name for config in settings}
    assert len(names) == len(vars(SIMULATION)) + 1
    assert any(name.startswith("2D_CFD_Sim_M0.1_Eta0.01_Zeta0.01_periodic_8_n10_seed0_") for name in names)


def test_a_simulation_that_fails_midway_leaves_nothing_and_is_done_again(tmp_path, monkeypatch):
    data = simulated(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(h5py.Dataset, "__setitem__", lambda *args: (_ for _ in ()).throw(RuntimeError("power cut")))
        with pytest.raises(RuntimeError, match="power cut"):
            data.prepare_data()
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(FileNotFoundError, match=r"simulated set .* to exist, but it does not: call `prepare_data\(\)`"):
        data.setup("fit")
    data.prepare_data()
    data.setup("fit")
    assert [file.name for file in tmp_path.iterdir()] == [data.data_path.name]


def test_a_damaged_set_in_the_cache_is_to_be_made_anew(tmp_path):
    data = simulated(tmp_path)
    data.prepare_data()
    with data.data_path.open("r+b") as file:
        file.truncate(5000)
    with pytest.raises(OSError, match=r"truncated file.* simulated set that was kept: delete it, and it is made anew"):
        data.prepare_data()


def test_default_cache_is_the_users(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert CFDDataModule().data_path.parent == tmp_path / "lightning_farms"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert CFDDataModule().data_path.parent == tmp_path / "home" / ".cache" / "lightning_farms"


def test_image_size_is_known_before_any_data(tmp_path, path):
    data = simulated(tmp_path / "cache", stride=2)
    assert (data.img_size, data.n_channels, data.in_timesteps, data.out_timesteps) == (4, 4, 3, 1)
    assert not (tmp_path / "cache").exists()
    assert module(path, stride=4).img_size == 2


@pytest.mark.parametrize(
    ("file", "options", "stage", "message"),
    [
        ({}, {"in_timesteps": 7}, "fit", r"at least 7 given \+ 2 target frames, but it has 8: lower `in_timesteps`"),
        ({}, {"autoregressive_steps": 3}, "fit", r"at least 3 given \+ 6 target frames, but it has 8: lower"),
        ({}, {"time_stride": 2}, "fit", r"3 given \+ 2 target frames at a stride in time of 2, but it has 4: lower"),
        ({}, {"in_timesteps": 8}, "test", r"at least 8 given \+ 1 target frames, but it has 8"),
        (
            {"trajectories": 4},
            {},
            "fit",
            "the val split .* none of the 4 in .*file.hdf5: it takes the test flows, and .* Raise `test_fraction` to",
        ),
        (
            {"trajectories": 4},
            {},
            "test",
            "the test split .* none of the 4 in .*file.hdf5: `test_fraction` 0.1 of 4 is less",
        ),
        ({"trajectories": 8}, {"test_fraction": 0.12}, "test", "Raise `test_fraction` to at least 0.13"),
        ({"trajectories": 8}, {"test_fraction": 0.25, "val_fraction": 0.1}, "fit", "`val_fraction` to at least 0.17"),
        ({}, {"train_fraction": 0.05}, "fit", "none of the 12 .*: `train_fraction` 0.05 of 11 is .* to at least 0.1,"),
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
        ({"autoregressive_steps": 0}, "`autoregressive_steps` to be at least 1"),
        ({"time_stride": 0}, "`time_stride` to be at least 1"),
        ({"subset_seed": -1}, "`subset_seed` to be in"),
        ({"noise": -0.1}, "`noise` to be at least 0 and finite, but got -0.1"),
        ({"noise": float("nan")}, "`noise` to be at least 0 and finite, but got nan"),
        ({"stride": [1, 2]}, r"`stride` to be one number, or one for each of the 1 files, but got \[1, 2\]"),
        ({"fields": {}}, "`fields` to map at least one channel"),
        ({"axes": "bxyt"}, "`axes` to be 'btxy' when `fields` is left out, but got 'bxyt'"),
        ({"path": None, "fields": {"u": "u"}}, "`path` to name a file when `fields` is given"),
        ({"path": []}, "`path` to name at least one file, each once, but got"),
        ({"path": ["a.h5", "b.h5", "a.h5"]}, r"each once, but got \['a.h5', 'b.h5', 'a.h5'\]"),
        ({"path": ["a.h5", "b.h5"], "stride": [2, 0]}, "`stride` to be at least 1"),
        ({"split": "random"}, "`split` to be 'dpot' or 'pdebench'"),
        ({"channel_order": "xyz"}, "`channel_order` to be one of"),
    ],
)
def test_wrong_arguments_are_refused_at_once(options, message):
    with pytest.raises(ValueError, match=message):
        CFDDataModule(**{"path": "unread.hdf5"} | options)


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
    several = ["--data.path=[a.h5, b.h5]", "--data.stride=[4, 1]", "--data.fields={u: 'v[0]', p: p}"]
    data = parser.instantiate(parser.parse_args(several)).data
    assert (data.path, data.stride, data.channels) == ([Path("a.h5"), Path("b.h5")], [4, 1], ("u", "p"))
    text = parser.format_help()
    assert "--data.simulation.mach" in text
    assert "because DPOT's pre-training data" in " ".join(text.split())
