"""Files of the layouts that people bring: read, trained on and tested."""

import h5py
import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from torch import nn

from lightning_farms.data import CFDDataModule, PDEBenchFile
from lightning_farms.data.fields.trajectory_files import TrajectoryFiles
from lightning_farms.models import DPOT, OperatorModule

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers:UserWarning"),
    pytest.mark.filterwarnings("ignore:.*number of training batches:UserWarning"),
]


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
    with pytest.raises(
        ValueError, match=r"all datasets `\*/data` of .* to be alike, but `0002/data` is of shape \(5, 8"
    ):
        PDEBenchFile(tmp_path / "a.h5", fields={"h": "*/data[0]"})


def test_incompressible_flow(tmp_path):
    """PDEBench's: velocity (B, T, X, Y, 2), particles (B, T, X, Y, 1), forces that stay, times of each trajectory."""
    random = np.random.RandomState(1)
    velocity, force = (random.standard_normal(size).astype(np.float32) for size in ((4, 6, 8, 8, 2), (4, 8, 8, 2)))
    particles = random.uniform(1, 2, (4, 6, 8, 8, 1)).astype(np.float32)
    with h5py.File(tmp_path / "ns_incom.h5", "w") as file:
        file["velocity"], file["particles"], file["force"] = velocity, particles, force
        file["t"] = np.tile(0.25 * np.arange(6), (4, 1))
    fields = {"vx": "velocity[0]", "vy": "velocity[1]", "particles": "particles[0]", "fy": "force[1]", "fx": "force[0]"}
    file = PDEBenchFile(tmp_path / "ns_incom.h5", fields=fields)
    assert (file.shape, file.t.tolist()) == ((4, 6, 8, 8), [0, 0.25, 0.5, 0.75, 1, 1.25])
    read = file.read(3, 1, 6, time_stride=2).numpy()
    np.testing.assert_array_equal(read[..., :2], velocity[3, 1:6:2].transpose(1, 2, 0, 3))
    np.testing.assert_array_equal(read[..., 2], particles[3, 1:6:2, ..., 0].transpose(1, 2, 0))
    for frame in range(3):
        np.testing.assert_array_equal(read[:, :, frame, 3:], force[3, ..., ::-1])
    data = CFDDataModule(
        tmp_path / "ns_incom.h5", fields=fields, in_timesteps=3, test_fraction=0.25, augment="symmetries"
    )
    assert 0 < trained_and_tested(data) < 3
    assert data._train.augmentation.vectors == ((0, 1), (4, 3))


def write_folder(folder, values):
    """A file for each trajectory, as DPOT's program keeps them: (X, Y, T, C)."""
    folder.mkdir(parents=True)
    for number, flow in enumerate(values):
        with h5py.File(folder / f"data_{number}.hdf5", "w") as file:
            file["data"] = flow
    return folder


FOLDER = {
    "fields": {"Vx": "data[0]", "Vy": "data[1]", "density": "data[2]", "pressure": "data[3]"},
    "axes": "xytc",
}


def test_folders_of_one_file_a_trajectory(tmp_path):
    """DPOT's; the files are in the order of their numbers, and are one set."""
    values = np.random.RandomState(2).standard_normal((12, 8, 8, 6, 4)).astype(np.float32)
    train, test = (write_folder(tmp_path / "set" / name, part) for name, part in (("train", values), ("test", -values)))
    data = CFDDataModule(
        train, test_path=test, in_timesteps=3, val_fraction=0.25, augment="all", periodic=True, **FOLDER
    )
    assert 0.5 < trained_and_tested(data) < 3
    assert (data.train_items, data.val_items, data.test_items, data.img_size) == (9, 3, 12, 8)
    x, y = next(iter(data.val_dataloader()))
    np.testing.assert_array_equal(torch.cat((x, y), dim=3).numpy(), values[9:])
    x, y = next(iter(data.test_dataloader()))
    np.testing.assert_array_equal(x.numpy(), -values[:8, :, :, :3])
    state = data.state_dict()["lineage"]
    assert [(entry["file"], entry["flows"]) for entry in state["trained"]] == [("train", [[0, 8]])]
    one = CFDDataModule(train / "data_3.hdf5", in_timesteps=3, **FOLDER)
    one.setup("predict")
    np.testing.assert_array_equal(one.predict_dataloader().dataset[0][0].numpy(), values[3, :, :, :3])


def test_a_folder_with_bad_files(tmp_path):
    values = np.random.RandomState(2).standard_normal((12, 8, 8, 6, 4)).astype(np.float32)
    values[7, 0, 0, 2, 1] = np.nan
    folder = write_folder(tmp_path / "train", values)
    with h5py.File(folder / "data_9.hdf5", "w") as file:
        file["data"] = values[9, :, :, :5]
    data = CFDDataModule(folder, in_timesteps=3, test_fraction=0.1, **FOLDER)
    data.setup("fit")
    for number, message in (
        (7, r"`Vy` of .*data_7.hdf5 to be finite, .* 1 NaN values in frame 2.* In the set, it is trajectory 7"),
        (
            9,
            r"data_9.hdf5 to hold fields of the sizes .*\(6, 8, 8\) frames and cells, but got \(5, 8, 8\).*skip: \[9\]",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            data._train[number]
    data = CFDDataModule(folder, in_timesteps=3, test_fraction=0.1, skip=[7, 9], **FOLDER)
    data.setup("fit")
    assert len(list(data.train_dataloader())) == 2
    (folder / "data_4.hdf5").unlink()
    with pytest.warns(UserWarning, match="In .*train, the files are numbered to 11, but there is none of number 4"):
        CFDDataModule(folder, in_timesteps=3, test_fraction=0.1, **FOLDER).setup("fit")
    with pytest.raises(FileNotFoundError, match=r"a folder of HDF5 files \(.hdf5, .h5, .hdf\), but .* has none"):
        CFDDataModule(tmp_path)
    with pytest.raises(ValueError, match="`stride` to be one number for files of one trajectory each"):
        CFDDataModule(folder, stride=[1] * 10 + [2], **FOLDER).setup("fit")


def test_the_well(tmp_path):
    """Scalars, vectors, tensors; what does not vary between trajectories, in time or along an axis is left out."""
    random = np.random.RandomState(3)
    stored = {
        "t0_fields/buoyancy": ((5, 6, 8, 8), True, True, [True, True]),
        "t1_fields/velocity": ((5, 6, 8, 8, 2), True, True, [True, True]),
        "t2_fields/D": ((5, 6, 8, 8, 2, 2), True, True, [True, True]),
        "t0_fields/permeability": ((5, 8, 8), True, False, [True, True]),
        "t0_fields/mask": ((8, 8), False, False, [True, True]),
        "t0_fields/profile": ((6, 8), False, True, [True, False]),
        "t0_fields/column": ((8, 1), False, False, [True, False]),
        "scalars/viscosity": ((), False, False, None),
        "scalars/forcing": ((6,), False, True, None),
        "scalars/ratio": ((5,), True, False, None),
    }
    arrays = {name: np.asarray(random.standard_normal(size), np.float32) for name, (size, *_) in stored.items()}
    with h5py.File(tmp_path / "well.hdf5", "w") as file:
        for name, (_, sample, time, space) in stored.items():
            file[name] = arrays[name]
            file[name].attrs.update({"sample_varying": sample, "time_varying": time})
            if space is not None:
                file[name].attrs["dim_varying"] = space
        file["dimensions/time"] = np.arange(6.0)
    fields = {name.split("/")[1]: name for name in stored if name[1] not in "12"}
    fields |= {"vx": "t1_fields/velocity[0]", "vy": "t1_fields/velocity[1]", "Dxy": "t2_fields/D[0, 1]"}
    read = PDEBenchFile(tmp_path / "well.hdf5", fields=fields).read(3, 1, 5).numpy()
    expected = {
        "buoyancy": arrays["t0_fields/buoyancy"][3, 1:5],
        "permeability": arrays["t0_fields/permeability"][3][None],
        "mask": arrays["t0_fields/mask"][None],
        "profile": arrays["t0_fields/profile"][1:5, :, None],
        "column": arrays["t0_fields/column"][None],
        "viscosity": arrays["scalars/viscosity"],
        "forcing": arrays["scalars/forcing"][1:5, None, None],
        "ratio": arrays["scalars/ratio"][3],
        "vx": arrays["t1_fields/velocity"][3, 1:5, ..., 0],
        "vy": arrays["t1_fields/velocity"][3, 1:5, ..., 1],
        "Dxy": arrays["t2_fields/D"][3, 1:5, ..., 0, 1],
    }
    for channel, name in enumerate(fields):
        np.testing.assert_array_equal(read[..., channel], np.broadcast_to(expected[name], (4, 8, 8)).transpose(1, 2, 0))
    data = CFDDataModule(tmp_path / "well.hdf5", fields=fields, in_timesteps=3, test_fraction=0.25)
    assert 0 < trained_and_tested(data) < 3
    with pytest.raises(ValueError, match=r"`t2_fields/D` .* Name one of its components, such as 't2_fields/D\[0, 0\]'"):
        PDEBenchFile(tmp_path / "well.hdf5", fields={"D": "t2_fields/D"})
    with pytest.raises(ValueError, match=r"`t0_fields/mask` to have the axes \(B, T, X, Y\), but it is of shape"):
        PDEBenchFile(tmp_path / "well.hdf5", fields={"mask": "t0_fields/mask", "k": "t0_fields/permeability"})


def test_grids_that_are_not_square(tmp_path):
    """PDEArena's shallow water has 96 x 192 cells; here 32 x 64, so that Fourier errors are taken too."""
    values = np.random.RandomState(4).standard_normal((4, 5, 32, 64)).astype(np.float32)
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["h"] = values
    data = CFDDataModule(tmp_path / "a.h5", fields={"h": "h"}, in_timesteps=3, test_fraction=0.25, stride=1)
    assert 0.5 < trained_and_tested(data) < 3
    assert data.grid_size == (32, 64)
    x, y = next(iter(data.test_dataloader()))
    np.testing.assert_array_equal(torch.cat((x, y), dim=3)[0, ..., 0].numpy(), values[3].transpose(1, 2, 0))
    assert CFDDataModule(tmp_path / "a.h5", fields={"h": "h"}, stride=16).grid_size == (2, 4)
    assert data.img_size == (32, 64)
    network = DPOT(img_size=data.img_size, patch_size=8, in_channels=1, out_channels=1, in_timesteps=3, embed_dim=8)
    assert network(x).prediction.shape == (1, 32, 64, 1, 1)


def test_groups_come_in_the_order_of_their_numbers(tmp_path):
    with h5py.File(tmp_path / "flows.h5", "w") as file:
        for number in range(11):
            file[f"run_{number}/h"] = np.full((3, 4, 4), number + 1.0) + np.arange(16.0).reshape(4, 4) / 100
    flows = PDEBenchFile(tmp_path / "flows.h5", fields={"h": "*/h"}, axes="txy")
    assert [int(flows.read(number).min()) for number in range(11)] == list(range(1, 12))


def test_a_dataset_for_each_trajectory_by_a_part_of_its_name(tmp_path):
    field = np.arange(48.0).reshape(3, 4, 4) / 100
    with h5py.File(tmp_path / "flows.h5", "w") as file:
        for number in range(3):
            file[f"set/u_{number}"] = file[f"run_{number}/v"] = field + number + 1
        file["set/grid"] = file["metadata/v_of_t"] = np.ones(3)
    flows = PDEBenchFile(tmp_path / "flows.h5", fields={"u": "set/u_*", "v": "run_*/v"}, axes="txy")
    assert [flows.read(number)[0, 0, 0].tolist() for number in range(3)] == [[1, 1], [2, 2], [3, 3]]
    with pytest.raises(ValueError, match=r"`fields` to have one \* at most, .* but got '\*/\*'"):
        PDEBenchFile(tmp_path / "flows.h5", fields={"u": "*/*"}, axes="txy")


def test_trajectories_that_lack_a_channel_in_turn_are_not_mixed(tmp_path):
    field = np.arange(48.0).reshape(3, 4, 4) + 1
    with h5py.File(tmp_path / "flows.h5", "w") as file:
        for number in range(4):
            for name in {"u", "v"} - {1: {"u"}, 2: {"v"}}.get(number, set()):
                file[f"{number}/{name}"] = field
    with pytest.raises(ValueError, match=r"`\*/u` and `\*/v` to be there for the same .*, but there is no `1/u`"):
        PDEBenchFile(tmp_path / "flows.h5", fields={"u": "*/u", "v": "*/v"}, axes="txy")


def test_files_of_one_trajectory_that_differ_in_their_time_step_are_told_once(tmp_path, recwarn):
    paths = [tmp_path / f"data_{number}.hdf5" for number in range(4)]
    for number, path in enumerate(paths):
        with h5py.File(path, "w") as file:
            file["data"] = np.random.default_rng(number).random((8, 8, 5, 1))
            file["t-coordinate"] = np.arange(5) * (0.5 if number > 1 else 0.05)
    files = TrajectoryFiles(paths, fields={"h": "data[0]"}, axes="xytc")
    files.read(1)
    assert not recwarn
    for number in (2, 3, 2):
        files.read(number)
    (said,) = recwarn
    assert f"{paths[2]} has a time step of 0.5, but {paths[0]} of 0.05" in str(said.message)


def _groups(path, times, x=None, y=None):
    """PDEBench's layout of a group for each trajectory, with its own grid."""
    cells = [np.arange(8.0)] * len(times)
    with h5py.File(path, "w") as file:
        for number, (t, *own) in enumerate(zip(times, x or cells, y or cells, strict=True), start=1):
            file[f"{number:04d}/data"] = np.random.default_rng(number).random((5, 8, 8, 1), dtype=np.float32)
            file[f"{number:04d}/grid/x"], file[f"{number:04d}/grid/y"] = own
            if t is not None:
                file[f"{number:04d}/grid/t"] = t
    return PDEBenchFile(path, fields={"h": "*/data[0]"}, axes="txyc")


def test_groups_that_differ_in_their_time_step_are_told_as_files_are(tmp_path):
    slow, fast = np.arange(5) * 0.5, np.arange(5) * 0.05
    files = _groups(tmp_path / "flows.h5", [fast, fast, slow, slow])
    assert files.t is None
    assert files.remarks == (
        "the t-coordinate differs between trajectories, and is not used; trajectory 2 has a time step of 0.5, "
        "but trajectory 0 of 0.05, and a network that is trained on both learns neither. Leave out the flows of one "
        "step, or resample them",
    )
    data = CFDDataModule(
        tmp_path / "flows.h5", fields={"h": "*/data[0]"}, axes="txyc", in_timesteps=3, test_fraction=0.25
    )
    with pytest.warns(UserWarning, match=r"flows\.h5, .*; trajectory 2 has a time step of 0\.5, but trajectory 0 of"):
        data.setup("fit")


def test_groups_that_differ_in_their_cells_are_told(tmp_path):
    t, cells = np.arange(5) * 0.5, np.arange(8.0)
    files = _groups(tmp_path / "flows.h5", [t] * 3, x=[cells, cells, 2 * cells])
    assert (files.x, files.y.tolist(), files.t.tolist()) == (None, cells.tolist(), t.tolist())
    assert files.remarks == (
        "the x-coordinate differs between trajectories, and is not used; trajectory 2 has cells along x of 2, "
        "but trajectory 0 of 1, and a network that is trained on both learns neither. Leave out the flows of one step, "
        "or resample them",
    )
    (remark,) = _groups(tmp_path / "turned.h5", [t] * 3, y=[cells, cells[::-1], cells]).remarks
    assert "trajectory 1 has cells along y of -1, but trajectory 0 of 1" in remark
    (remark,) = _groups(tmp_path / "moved.h5", [t] * 3, y=[cells, cells + 3, cells]).remarks
    assert remark == "the y-coordinate differs between trajectories, and is not used"


def test_what_is_odd_about_groups_that_are_left_out_is_not_told(tmp_path, recwarn):
    t, cells = np.arange(5) * 0.5, np.arange(8.0)
    _groups(tmp_path / "flows.h5", [0.1 * t, t, t, t, t, t], x=[cells, cells, cells, 2 * cells, cells, cells])
    with h5py.File(tmp_path / "flows.h5", "r+") as file:
        file["0007/data"] = np.ones((4, 8, 8, 1), np.float32)  # a trajectory that ended early
    options = {"fields": {"h": "*/data[0]"}, "axes": "txyc", "in_timesteps": 3, "test_fraction": 0.3}
    with pytest.raises(ValueError, match=r"`0007/data` is of shape \(4, .*Leave the odd ones out \(`skip`: 6\)"):
        CFDDataModule(tmp_path / "flows.h5", **options).setup("fit")
    data = CFDDataModule(tmp_path / "flows.h5", skip=[0, 3, 6], **options)
    data.setup("fit")
    assert (data.coordinates.t.tolist(), data.coordinates.x.tolist()) == (t.tolist(), cells.tolist())
    assert [len(x) for x, _ in data.train_dataloader()] == [3]
    assert not recwarn


def test_files_of_one_trajectory_are_compared_with_the_first_that_is_kept(tmp_path, recwarn):
    paths = [tmp_path / f"data_{number}.hdf5" for number in range(6)]
    for number, path in enumerate(paths):
        with h5py.File(path, "w") as file:
            file["data"] = np.random.default_rng(number).random((8, 8, 5 if number else 4, 1))
            file["y-coordinate"] = np.arange(8) * (0.5 if number == 4 else 0.25)
    options = {"fields": {"h": "data[0]"}, "axes": "xytc", "in_timesteps": 3, "test_fraction": 0.4}
    data = CFDDataModule(paths, skip={str(tmp_path): [0, 4]}, **options)
    data.setup("fit")
    for loader in (data.train_dataloader(), data.val_dataloader()):
        list(loader)
    assert not recwarn
    data = CFDDataModule(paths, skip={str(tmp_path): [0]}, **options)
    data.setup("fit")
    with pytest.warns(UserWarning, match=r"data_4.hdf5 has cells along y of 0\.5, .*data_1.hdf5 of 0\.25"):
        list(data.val_dataloader())


def test_groups_of_other_times_or_none_have_no_times_in_common(tmp_path):
    t = np.arange(5) * 1e-9
    alike = _groups(tmp_path / "alike.h5", [t, t])
    assert (alike.remarks, alike.t.tolist(), alike.x.tolist()) == ((), t.astype("f4").tolist(), list(range(8)))
    for name, other in {"later": t + 1, "none": None}.items():
        files = _groups(tmp_path / f"{name}.h5", [t, other])
        assert files.remarks == ("the t-coordinate differs between trajectories, and is not used",)
    assert "trajectory 1 has a time step of 2e-09" in _groups(tmp_path / "faster.h5", [t, 2 * t]).remarks[0]


def test_a_single_group_has_its_own_coordinates(tmp_path):
    _groups(tmp_path / "flows.h5", [np.arange(5) * 0.5, np.arange(5) * 0.05])
    for number, step in ((1, 0.5), (2, 0.05)):
        file = PDEBenchFile(tmp_path / "flows.h5", fields={"h": f"{number:04d}/data[0]"}, axes="txyc")
        assert float(file.t[1]) == pytest.approx(step)
