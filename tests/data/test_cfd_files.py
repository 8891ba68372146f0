"""Several files as one set, files of other layouts, and what a writer of predictions asks for."""

import h5py
import numpy as np
import pytest
import torch

from lightning_farms.data import Coordinates
from tests.data.fields.labelled_flows import labels, module, write_labelled


def grow(path, offset):
    """Tell a file's labels from another's."""
    with h5py.File(path, "a") as file:
        for name in ("density", "Vx", "Vy", "pressure"):
            file[name][...] += offset
    return path


@pytest.fixture
def paths(tmp_path):
    first = write_labelled(tmp_path / "first.hdf5")
    return [first, grow(write_labelled(tmp_path / "second.hdf5", trajectories=20, size=(16, 16)), 10_000)]


def trajectories(loader):
    return [first // 100 for batch in loader for first, _ in labels(batch)]


@pytest.mark.parametrize("workers", [0, 2])
def test_each_file_is_split_for_itself_and_training_is_shuffled_over_all(paths, workers):
    data = module(paths, stride=[1, 2], num_workers=workers, val_fraction=0.1)
    data.setup("fit")
    data.setup("test")
    shown = trajectories(data.train_dataloader())
    assert sorted(shown) == [*range(10), *range(100, 117)]
    assert len({n >= 100 for n in shown[:8]}) == 2, "both files are in the first items"
    assert trajectories(data.val_dataloader()) == [10, 117]
    assert trajectories(data.test_dataloader()) == [11, 118, 119]
    assert (data.img_size, data.train_items, data.val_items, data.test_items) == (8, 27, 2, 3)
    assert (data.path, data.data_path, data.data_paths) == (paths, paths[0], tuple(paths))


def test_a_fraction_is_taken_of_each_file(paths):
    data = module(paths, stride=[1, 2], train_fraction=0.5)
    data.setup("fit")
    shown = trajectories(data.train_dataloader())
    assert (sum(n < 100 for n in shown), sum(n >= 100 for n in shown)) == (5, 9)


@pytest.mark.parametrize(
    ("second", "options", "message"),
    [
        ({"size": (16, 16)}, {}, r"as .*first.hdf5, 8, but .*other.hdf5 has 16\. Give `stride` as a list"),
        ({"frames": 9}, {}, r"all files to have as many frames as .*first.hdf5, 8, but .*other.hdf5 has 9"),
        (
            {"trajectories": 4},
            {},
            "the val split .* none of the 4 in .*other.hdf5: it takes the test flows, and `test_frac",
        ),
        ({"trajectories": 10}, {"train_fraction": 0.1}, "none of the 10 in .*other.hdf5: `train_fraction` 0.1 of 9 is"),
        ({"size": (8, 4)}, {}, r"as .*first.hdf5, 8, but .*other.hdf5 has \(8, 4\)"),
    ],
)
def test_a_file_that_does_not_fit_is_named(tmp_path, paths, second, options, message):
    other = write_labelled(tmp_path / "other.hdf5", **second)
    with pytest.raises(ValueError, match=message):
        module([paths[0], other], **options).setup("fit")


def test_channels_that_a_file_lacks(tmp_path, paths):
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["u"] = np.zeros((12, 8, 8, 8), np.float32)
    with pytest.raises(ValueError, match=r"Expected .*other.hdf5 to hold the datasets .* found u \(12, 8, 8, 8\)"):
        module([paths[0], tmp_path / "other.hdf5"]).setup("fit")


def test_channels_named_in_another_layout(tmp_path):
    velocity = np.random.RandomState(0).standard_normal((12, 8, 4, 4, 2)).astype(np.float32)
    with h5py.File(tmp_path / "well.hdf5", "w") as file:
        file["t1_fields/velocity"] = velocity
    data = module(
        tmp_path / "well.hdf5", fields={"vy": "t1_fields/velocity[1]", "vx": "t1_fields/velocity[0]"}, in_timesteps=3
    )
    assert (data.channels, data.n_channels, data.img_size) == (("vy", "vx"), 2, 4)
    data.setup("test")
    x, y = next(iter(data.test_dataloader()))
    expected = velocity[11].transpose(1, 2, 0, 3)[..., ::-1]
    np.testing.assert_array_equal(torch.cat((x, y), dim=3)[0].numpy(), expected)


def describe(path, *, cells, frames=8, **attributes):
    """Coordinates as in PDEBench's files, with one time more than frames, and attributes."""
    with h5py.File(path, "a") as file:
        for axis in "xy":
            file[f"{axis}-coordinate"] = (np.arange(cells, dtype=np.float32) + 0.5) / cells
        file["t-coordinate"] = np.arange(frames + 1, dtype=np.float32)
        file.attrs.update(attributes)


def test_coordinates_after_the_strides(paths):
    describe(paths[0], cells=8)
    coordinates = module(paths[0], stride=4, time_stride=3).coordinates
    assert isinstance(coordinates, Coordinates)
    assert coordinates.x.tolist() == coordinates.y.tolist() == [0.0625, 0.5625]
    assert coordinates.t.tolist() == [0, 3, 6]


def test_coordinates_and_physics_that_files_share(paths):
    data = module(paths, stride=[1, 2])
    assert data.coordinates == (None, None, None)
    assert data.physics == {}
    describe(paths[0], cells=8, eta=0.1, M=1.0, zeta=0.1)
    describe(paths[1], cells=16, eta=0.01, M=1.0)
    data = module(paths, stride=[1, 2])
    assert data.coordinates.x is None, "the cells' centres differ"
    assert data.coordinates.t.tolist() == list(range(8))
    assert data.physics == {"M": 1.0}
    assert module(paths[0]).physics == {"eta": 0.1, "zeta": 0.1, "M": 1.0}


def test_files_whose_cells_have_other_widths_are_told(tmp_path, paths, recwarn):
    describe(paths[0], cells=8)
    describe(paths[1], cells=16)
    module(paths, stride=[1, 2]).setup("fit")
    assert not recwarn, "their cells are as wide after the stride"
    wide = grow(write_labelled(tmp_path / "wide.hdf5"), 20_000)
    with h5py.File(wide, "a") as file:
        file["x-coordinate"] = file["y-coordinate"] = (np.arange(8) + 0.5) / 4
    with pytest.warns(
        UserWarning,
        match=r"files' cells are 0\.125 to 0\.25 wide along x, but nothing tells the "
        r"network",
    ):
        module([paths[0], wide]).setup("fit")


def test_cells_of_another_width_than_in_a_checkpoints_training_are_told(paths, recwarn):
    describe(paths[0], cells=8)
    describe(paths[1], cells=16)
    trained, alike, finer = module(paths[0]), module(paths[1], stride=2), module(paths[1])
    for data in (trained, alike, finer):
        data.setup("predict")
    state = trained.state_dict()
    alike.load_state_dict(state)
    trained.load_state_dict({name: value for name, value in state.items() if name != "cell_width"})
    assert not recwarn
    with pytest.warns(UserWarning, match=r"cells are 0\.0625 wide along x, but were 0\.125 wide in the training"):
        finer.load_state_dict(state)
