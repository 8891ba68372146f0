"""Files that could deceive in silence: each is refused, or told, before a training begins."""

import shutil

import h5py
import numpy as np
import pytest

from lightning_farms.data import CFDDataModule
from lightning_farms.data.fields.pdebench import PDEBenchFile

CHANNELS = ("Vx", "Vy", "density", "pressure")


def write(path, trajectories=12, frames=6, size=(8, 8), seed=0, times=None, axes=True):
    """Flows of independent positive numbers in PDEBench's layout."""
    numbers = np.random.default_rng(seed)
    with h5py.File(path, "w") as file:
        for name in CHANNELS:
            file[name] = numbers.uniform(0.5, 1.5, (trajectories, frames, *size)).astype(np.float32)
        if axes:
            for name, cells in zip("xy", size, strict=True):
                file[f"{name}-coordinate"] = (np.arange(cells) + 0.5) / cells
            file["t-coordinate"] = np.linspace(0, 1, frames) if times is None else np.asarray(times)
    return path


def change(path, **values):
    with h5py.File(path, "a") as file:
        for name, value in values.items():
            del file[name]
            file[name] = value
    return path


def module(path, **options):
    options = {"in_timesteps": 3, "batch_size": 4, "val_fraction": 0.2, "test_fraction": 0.2, **options}
    return CFDDataModule(path, **options)


@pytest.mark.filterwarnings("ignore:.*is 0 in whole frames")
def test_a_channel_that_is_the_same_everywhere_is_not_normalized(tmp_path):
    path = change(write(tmp_path / "still.hdf5"), Vy=np.zeros((12, 6, 8, 8), np.float32))
    data = module(path, normalize=True)
    data.setup("fit")
    with pytest.raises(ValueError, match=r"Vy"):
        data.train_dataloader()
    plain = module(path)
    plain.setup("fit")
    assert len(list(plain.train_dataloader())) > 0


@pytest.mark.parametrize("kind", ["copy", "symlink"])
@pytest.mark.parametrize("purpose", ["val_path", "test_path"])
def test_flows_that_are_trained_on_are_no_others_under_another_name(tmp_path, kind, purpose):
    path, other = write(tmp_path / "flows.hdf5"), tmp_path / "others.hdf5"
    other.symlink_to(path) if kind == "symlink" else shutil.copy(path, other)
    options = {"val_fraction": 0.0} if purpose == "val_path" else {}

    def begin():
        data = module(path, **{purpose: other}, **options)
        data.setup("fit")
        data.setup("test")

    with pytest.raises(ValueError, match=r"others.hdf5|same file"):
        begin()


def test_a_copy_among_the_files_to_train_on_is_told(tmp_path):
    path = write(tmp_path / "flows.hdf5")
    shutil.copy(path, tmp_path / "again.hdf5")
    with pytest.warns(UserWarning, match="Flows count twice"):
        module([path, tmp_path / "again.hdf5"]).setup("fit")


def test_time_steps_that_differ_are_told(tmp_path):
    path = write(tmp_path / "uneven.hdf5", times=[0, 0.1, 0.2, 0.3, 0.4, 0.9])
    with pytest.warns(UserWarning, match=r"not equally spaced in time, but 0.1 to 0.5 apart"):
        module(path).setup("fit")


@pytest.mark.parametrize(
    ("times", "fault"),
    [
        ([0, 0.1, np.nan, 0.3, 0.4, 0.5], "has values that are not finite"),
        ([0, 0.1, 0.1, 0.3, 0.4, 0.5], "does not increase"),
        ([0, 0.1, 0.2], "has 3 entries for 6 frames"),
        (1.7e9 + np.arange(6), "has steps of 1 at 1.7e+09, which float32 does not tell apart"),
    ],
)
def test_times_that_cannot_be_are_told_and_not_used(tmp_path, times, fault):
    file = PDEBenchFile(write(tmp_path / "flows.hdf5", times=times))
    assert file.t is None
    assert file.remarks == (f"the t-coordinate {fault}, and is not used",)


@pytest.mark.parametrize(
    "times", [[0, 0.1, 0.2, 0.3, 0.4, 0.5, 9], [[0], [0.1], [0.2], [0.3], [0.4], [0.5]]], ids=["odd end", "column"]
)
def test_times_that_tell_the_frames_are_used(tmp_path, times):
    file = PDEBenchFile(write(tmp_path / "flows.hdf5", times=times))
    assert (len(file.t), file.t[5], file.remarks) == (np.size(times), np.float32(0.5), ())


@pytest.mark.parametrize("order", ["ij", "xy"])
def test_cells_in_tables_are_lines_where_they_vary_along_one_dimension(tmp_path, order):
    path, cells = write(tmp_path / "flows.hdf5", axes=False), np.arange(8) + 0.5
    with h5py.File(path, "a") as file:
        file["x-coordinate"], file["y-coordinate"] = np.meshgrid(cells, 2 * cells, indexing=order)
    file = PDEBenchFile(path)
    assert (file.x.tolist(), file.y.tolist(), file.remarks) == (cells.tolist(), (2 * cells).tolist(), ())
    with h5py.File(path, "a") as file:
        file["x-coordinate"][...] += 0.3 * file["y-coordinate"][...]  # of a skewed grid
    file = PDEBenchFile(path)
    assert file.x is None
    assert file.remarks == ("the x-coordinate varies along two dimensions, and is not used",)


@pytest.mark.parametrize("name", ["_FillValue", "missing_value"])
def test_values_that_the_file_calls_missing_are_no_values(tmp_path, name):
    path = write(tmp_path / "flows.hdf5")
    with h5py.File(path, "a") as file:
        file["density"][3, 2, 1, 1] = -999.0
        file["density"].attrs[name] = np.float32(-999.0)
    with pytest.raises(ValueError, match="density"):
        PDEBenchFile(path).read(3, 0, 6)
    PDEBenchFile(path).read(2, 0, 6)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("code", [-999.0, 1e20, -1e34, 9.969209968386869e36])
def test_codes_for_missing_values_are_known_without_an_attribute(tmp_path, code, dtype):
    path = write(tmp_path / "flows.hdf5")
    with h5py.File(path, "a") as file:
        values = file["Vx"][:]
        del file["Vx"]
        file["Vx"] = values.astype(dtype)
        file["Vx"][3, 2, 1, 1] = code
    with pytest.raises(ValueError, match=r"`Vx` .* trajectory 3 has missing \(marked by .*\) values in frame 2"):
        PDEBenchFile(path).read(3)
    with h5py.File(path, "a") as file:
        file["Vx"][3, 2] = np.linspace(-5000, 5000, 64).reshape(8, 8)
        file["Vx"][3, 2, 4, 4] = -999.0  # one value among others of its size
    PDEBenchFile(path).read(3)


def test_flows_left_out_of_one_of_two_files(tmp_path):
    paths = [write(tmp_path / "a.hdf5"), write(tmp_path / "b.hdf5", seed=1)]
    data = module(paths, skip={"a.hdf5": [8, 9]}, val_fraction=0.2)
    data.setup("fit")
    assert (data.train_items, data.val_items, len(next(iter(data.val_dataloader()))[0])) == (16, 2, 2)


def test_frames_of_zeros_after_others_are_no_flow(tmp_path):
    path = write(tmp_path / "stopped.hdf5")
    with h5py.File(path, "a") as file:
        for name in ("Vx", "Vy", "density", "pressure"):
            file[name][5, 4:] = 0.0
    with pytest.raises(ValueError, match=r"trajectory 5"):
        PDEBenchFile(path, fields={name: name for name in CHANNELS}).read(5, 0, 6)


def test_axes_that_nothing_tells_may_be_turned(tmp_path):
    """(B, X, Y, T) of a square grid, read as (B, T, X, Y)."""
    turned = write(tmp_path / "turned.hdf5", frames=8, size=(8, 6), axes=False)
    (remark,) = PDEBenchFile(turned).remarks
    assert "8 frames of 8 x 6 cells and no coordinates, so that their axes may be in another order" in remark
    assert PDEBenchFile(write(tmp_path / "known.hdf5", frames=8, size=(8, 6))).remarks == ()
    assert PDEBenchFile(write(tmp_path / "square.hdf5", frames=8, size=(8, 8), axes=False)).remarks == ()
    with pytest.raises(ValueError, match="axes may be in another order"):
        PDEBenchFile(
            change(
                write(tmp_path / "told.hdf5", frames=8, size=(8, 6)),
                **{"x-coordinate": np.arange(8.0), "y-coordinate": np.arange(8.0), "t-coordinate": np.arange(6.0)},
            )
        )


@pytest.mark.parametrize("kind", [">f4", ">f8"])
def test_the_order_of_bytes_makes_no_difference(tmp_path, kind):
    path, swapped = write(tmp_path / "flows.hdf5"), write(tmp_path / "swapped.hdf5")
    with h5py.File(path) as file:
        values = {name: file[name][...].astype(kind) for name in CHANNELS}
    change(swapped, **values)
    assert PDEBenchFile(swapped).read(1, 0, 6).equal(PDEBenchFile(path).read(1, 0, 6))


@pytest.mark.parametrize("value", [np.zeros((12, 6, 8, 8), np.complex64), np.full((12, 6, 8, 8), b"x")])
def test_fields_that_are_no_real_numbers(tmp_path, value):
    path = change(write(tmp_path / "flows.hdf5"), Vx=value)
    with pytest.raises((ValueError, TypeError), match=r"flows\.hdf5"):
        PDEBenchFile(path).read(0, 0, 6)


def test_another_stride_in_time_is_told_where_the_files_tell_no_times(tmp_path):
    path = write(tmp_path / "flows.hdf5", frames=9, axes=False)
    trained, other = module(path), module(path, time_stride=2)
    for data in (trained, other):
        data.setup("validate")
    state = {**trained.state_dict(), "lineage": {"settings": {"time_stride": 1}, "trained": [], "validated": []}}
    with pytest.warns(UserWarning, match="`time_stride` is 2, but was 1 in the training"):
        other.load_state_dict(state)
    trained.load_state_dict(state)


def write_named(path, axes=("time", "y", "x"), descending=""):
    """A flow with netCDF's dimensions, in the order in which these are usually written."""
    with h5py.File(path, "w") as file:
        for name in axes:
            file[name] = np.arange(8.0)
            file[name].make_scale(name)
        for name in ("vx", "vy"):
            file[name] = np.random.default_rng(0).normal(size=(12, 8, 8, 8)).astype(np.float32)
            for place, axis in enumerate(axes, 1):
                file[name].dims[place].attach_scale(file[axis])
        for name in "xy":
            file[f"{name}-coordinate"] = np.arange(8.0)[:: -1 if name == descending else 1]
    return path


def test_axes_that_the_file_calls_otherwise_are_not_taken_for_x_and_y(tmp_path):
    path, fields = write_named(tmp_path / "named.nc"), {"vx": "vx", "vy": "vy"}
    with pytest.raises(ValueError, match=r"the file calls them \('', 'time', 'y', 'x'\): .* such as 'btyx'.*named.nc"):
        PDEBenchFile(path, fields=fields)
    with h5py.File(path) as file:
        assert np.array_equal(PDEBenchFile(path, fields=fields, axes="btyx").read(3)[..., 1], file["vy"][3].T)
    with h5py.File(path, "a") as file:  # a copy without its scales
        del file["x"], file["y"]
    assert PDEBenchFile(path, fields=fields).shape == (12, 8, 8, 8)


@pytest.mark.parametrize(("descending", "turns"), [("", True), ("y", False)])
def test_a_grid_that_descends_along_one_axis_is_not_turned(tmp_path, descending, turns):
    """With y downwards, an exchange of the axes is not one of the velocity's components."""
    path = write_named(tmp_path / "named.nc", ("time", "x", "y"), descending)
    data = module(path, fields={"vx": "vx", "vy": "vy"}, augment="symmetries")
    data.setup("fit")
    assert data._train.augmentation.turns is turns


def test_cells_that_are_not_equally_spaced_are_told(tmp_path):
    path = change(write(tmp_path / "stretched.hdf5"), **{"x-coordinate": np.arange(8.0) ** 2})
    with pytest.warns(UserWarning, match=r"the cells are not equally spaced along x, but errors"):
        module(path).setup("fit")


@pytest.mark.parametrize(
    ("values", "told"),
    [
        (
            lambda random: 101325 + 0.01 * random,
            "`pressure` varies by 0.00.* about 1.01e.05, of which float32 keeps",
        ),
        (lambda random: 1e-5 * (1 + random), "`pressure` varies by 9.*e-06 only, so that its VRMSE"),
    ],
)
def test_what_the_numbers_cannot_show_is_told(tmp_path, values, told):
    random = np.random.default_rng(0).uniform(0.5, 1.5, (12, 6, 8, 8))
    data = module(change(write(tmp_path / "flows.hdf5"), pressure=values(random)))
    data.setup("fit")
    with pytest.warns(UserWarning, match=told) as found:
        list(data.train_dataloader())
    assert len(found) == 1
