import multiprocessing
import os
import pickle
import time
import tracemalloc

import h5py
import numpy as np
import pytest
import torch

from lightning_farms.data import PDEBenchFile

FIELDS = ("density", "pressure", "Vx", "Vy")
SHAPE = (3, 6, 8, 4)


@pytest.fixture
def arrays():
    random = np.random.RandomState(0)
    fields = {name: random.standard_normal(SHAPE).astype(np.float32) for name in FIELDS}
    return fields | {name: np.exp(fields[name]) for name in ("density", "pressure")}


@pytest.fixture
def path(tmp_path, arrays):
    with h5py.File(tmp_path / "flow.hdf5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
        file["x-coordinate"] = np.arange(8, dtype=np.float32)
        file.attrs.update({"eta": 0.01, "zeta": 0.02, "M": 0.1})
    return tmp_path / "flow.hdf5"


def change(path, name, value):
    with h5py.File(path, "a") as file:
        del file[name]
        if value is not None:
            file[name] = value


@pytest.mark.parametrize(("order", "names"), [("dpot", ("Vx", "Vy", "density", "pressure")), ("pdebench", FIELDS)])
def test_reads_frames_of_one_trajectory(path, arrays, order, names):
    item = PDEBenchFile(path, channel_order=order).read(1, 2, 5)
    expected = np.stack([arrays[name][1, 2:5] for name in names], axis=-1).transpose(1, 2, 0, 3)
    assert (item.shape, item.dtype) == ((8, 4, 3, 4), torch.float32)
    np.testing.assert_array_equal(item.numpy(), expected)


def test_default_range_and_stride(path, arrays):
    item = PDEBenchFile(path).read(2, stride=2)
    assert item.shape == (4, 2, 6, 4)
    np.testing.assert_array_equal(item[..., 2].numpy(), arrays["density"][2, :, ::2, ::2].transpose(1, 2, 0))


def test_header(path):
    file = PDEBenchFile(str(path))
    assert file.shape == SHAPE
    assert (file.shape.trajectories, file.shape.frames, file.shape.x, file.shape.y) == SHAPE
    assert (file.eta, file.zeta, file.mach) == (0.01, 0.02, 0.1)
    assert torch.equal(file.x, torch.arange(8.0))
    assert file.y is None
    assert file.t is None


def test_double_precision_is_read_as_single(path, arrays):
    change(path, "Vx", arrays["Vx"].astype(np.float64))
    item = PDEBenchFile(path).read(0)
    assert item.dtype == torch.float32
    np.testing.assert_array_equal(item[..., 0].numpy(), arrays["Vx"][0].transpose(1, 2, 0))


def test_a_55_gb_file_opens_at_once_and_costs_memory_per_sample(tmp_path):
    path, shape = tmp_path / "large.hdf5", (10_000, 21, 128, 128)
    with h5py.File(path, "w") as file:
        for name in FIELDS:
            properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
            properties.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
            properties.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
            space = h5py.h5s.create_simple(shape)
            h5py.h5d.create(file.id, name.encode(), h5py.h5t.IEEE_F32LE, space, properties)
        for name in FIELDS:
            file[name][9_000, :11] = 1.0
        file["pressure"][9_000, 3] = 7.0
    assert path.stat().st_size > 55e9
    assert path.stat().st_blocks * 512 < 1e8
    tracemalloc.start()
    begin = time.perf_counter()
    file = PDEBenchFile(path)
    opened = time.perf_counter() - begin
    item = file.read(9_000, 0, 11)
    read = time.perf_counter() - begin
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert torch.equal(item[..., 3].amax((0, 1)), 1 + 6.0 * (torch.arange(11) == 3))
    assert opened < 0.25
    assert read < 1.0
    assert peak < 16e6


def test_pickle_carries_no_handle(path):
    file = PDEBenchFile(path)
    expected = file.read(0)
    copy = pickle.loads(pickle.dumps(file))
    assert copy._handle is None
    assert torch.equal(copy.read(0), expected)
    assert torch.equal(file.read(0), expected)


def test_close_and_read_again(path):
    file = PDEBenchFile(path)
    expected = file.read(0)
    file.close()
    file.close()
    assert torch.equal(file.read(0), expected)


def test_a_file_that_is_no_longer_there_is_no_damaged_flow(path):
    file = PDEBenchFile(path)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"found none at .*flow.hdf5\.$"):
        file.read(1)


def test_a_file_of_other_sizes_is_not_read_by_the_old_header(path, arrays):
    file = PDEBenchFile(path)
    file.read(0)
    file.close()
    with h5py.File(path, "w") as other:
        for name, array in arrays.items():
            other[name] = array[1:]
    with pytest.raises(OSError, match=r"first opened, with \(3, 6, 8, 4\) trajectories, .* and has \(2, 6, 8, 4\)"):
        file.read(0)


def test_new_values_of_a_file_are_told(path):
    file = PDEBenchFile(path)
    identity = file.identity()
    os.utime(path, ns=(0, 1))  # some file systems count seconds only
    with h5py.File(path, "r+") as other:
        other["Vx"][...] += 1
    with pytest.warns(UserWarning, match="flow.hdf5 was written since it was first opened"):
        file.read(0)
    file.close()
    file.read(1)  # told once
    assert file.identity() == identity != PDEBenchFile(path).identity()


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_process_opens_its_own_handle(path):
    file = PDEBenchFile(path)
    expected = file.read(0)
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)

    def child():
        inherited = file._handle
        same = torch.equal(file.read(0), expected)
        sender.send((same, file._owner == os.getpid(), file._handle is inherited, bool(inherited)))

    process = context.Process(target=child)
    process.start()
    assert receiver.poll(30)
    assert receiver.recv() == (True, True, False, False)
    process.join(30)
    assert torch.equal(file.read(0), expected)


def test_missing_file(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"`path` to be an existing file, but found none at .*absent"):
        PDEBenchFile(tmp_path / "absent.hdf5")


def test_a_folder(tmp_path):
    with pytest.raises(IsADirectoryError, match=r"`path` to be an HDF5 file, but .* is a folder"):
        PDEBenchFile(tmp_path)


@pytest.mark.parametrize("size", [0, 100, 3000, -100])
def test_truncated_file(path, size):
    os.truncate(path, size if size >= 0 else path.stat().st_size + size)
    with pytest.raises(OSError, match=r"Expected .* to be a complete HDF5 file.*download it again"):
        PDEBenchFile(path)


def test_not_an_hdf5_file(tmp_path):
    (tmp_path / "page.hdf5").write_text("Not found" * 100)
    with pytest.raises(OSError, match=r"Expected .* to be a complete HDF5 file"):
        PDEBenchFile(tmp_path / "page.hdf5")


def test_data_damaged_inside(path, arrays):
    change(path, "Vx", None)
    with h5py.File(path, "a") as file:
        chunked = file.create_dataset("Vx", data=arrays["Vx"], chunks=(1, 6, 8, 4), compression="gzip")
        offset = chunked.id.get_chunk_info(1).byte_offset
    with path.open("r+b") as raw:
        raw.seek(offset)
        raw.write(b"\xff" * 32)
    file = PDEBenchFile(path)
    file.read(0)
    with pytest.raises(OSError, match=r"Expected dataset `Vx` of trajectory 1 of .* to be readable"):
        file.read(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_named_when_read(path, arrays, bad):
    array = arrays["Vy"].copy()
    array[1, 4, 2, 2] = bad
    change(path, "Vy", array)
    file = PDEBenchFile(path)
    file.read(1, 0, 4)
    with pytest.raises(
        ValueError,
        match=r"channel `Vy` of .*flow.hdf5 to be finite, but trajectory 1 has 1 (NaN|inf)\w* values in frame 4\.",
    ):
        file.read(1, 2, 6)


def test_missing_dataset_names_what_is_there(path):
    change(path, "pressure", None)
    found = r"found Vx \(3, 6, 8, 4\), Vy .*density .* x-coordinate \(8,\)\. For a file with other names, give `fields`"
    with pytest.raises(ValueError, match=rf"\['pressure'\] are missing: {found}"):
        PDEBenchFile(path)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (
            np.zeros(SHAPE[1:], np.float32),
            r"have the axes \(B, T, X, Y\), but it is of shape \(6, 8, 4\)\. If the file is "
            r"one trajectory, .* File: .*hdf5",
        ),
        (np.zeros((*SHAPE, 2), np.float32), r"of shape \(3, 6, 8, 4, 2\)\. Name .* components, such as 'density\[0\]'"),
        (np.zeros(SHAPE, np.int32), "hold floating-point numbers, but got int32 of shape"),
    ],
)
def test_wrong_rank_or_type(path, value, message):
    change(path, "density", value)
    with pytest.raises(ValueError, match=f"`density` .*{message}"):
        PDEBenchFile(path)


def test_no_data(path):
    for name in FIELDS:
        change(path, name, np.zeros((0, 6, 8, 4), np.float32))
    with pytest.raises(ValueError, match=r"to hold data, but got 0 trajectories of 6 frames"):
        PDEBenchFile(path)


def test_other_pdebench_files_are_refused_with_what_they_hold(tmp_path):
    """Shallow water has a group for each of its 1000 trajectories, Darcy flow no frames."""
    with h5py.File(tmp_path / "swe.h5", "w") as file:
        for number in range(1000):
            file[f"{number:04d}/data"] = np.zeros((2, 4, 4, 1), np.float32)
    with pytest.raises(ValueError, match=r"are missing: found 0000/data \(2, 4, 4, 1\), .*, \.\.\.\. For") as error:
        PDEBenchFile(tmp_path / "swe.h5")
    assert len(str(error.value)) < 700
    with h5py.File(tmp_path / "darcy.h5", "w") as file:
        file["tensor"] = np.zeros((5, 1, 4, 4), np.float32)
        file["nu"] = np.zeros((5, 4, 4), np.float32)
    with pytest.raises(ValueError, match=r"found nu \(5, 4, 4\), tensor \(5, 1, 4, 4\)"):
        PDEBenchFile(tmp_path / "darcy.h5")
    with pytest.raises(ValueError, match=r"`nu` to have the axes \(B, T, X, Y\), but it is of shape \(5, 4, 4\)"):
        PDEBenchFile(tmp_path / "darcy.h5", fields={"nu": "nu"})
    assert PDEBenchFile(tmp_path / "darcy.h5", fields={"u": "tensor"}).shape == (5, 1, 4, 4)


@pytest.fixture
def well(tmp_path):
    """Fields in the layout of The Well."""
    random = np.random.RandomState(1)
    arrays = {
        "t0_fields/density": random.standard_normal((3, 6, 8, 4)).astype(np.float32),
        "t1_fields/velocity": random.standard_normal((3, 6, 8, 4, 2)).astype(np.float32),
        "t2_fields/stress": random.standard_normal((3, 6, 8, 4, 2, 2)).astype(np.float32),
        "dimensions/time": np.linspace(0, 1, 6, dtype=np.float32),
        "dimensions/x": np.arange(8, dtype=np.float32),
        "dimensions/y": np.zeros((3, 4), np.float32),  # varies between the trajectories
    }
    with h5py.File(tmp_path / "well.hdf5", "w") as file:
        for name, array in arrays.items():
            file[name] = array
    return tmp_path / "well.hdf5", arrays


def test_channels_of_the_well(well):
    path, arrays = well
    fields = {
        "vy": "t1_fields/velocity[1]",
        "rho": "t0_fields/density",
        "vx": "t1_fields/velocity[0]",
        "yx": "t2_fields/stress[1, 0]",
    }
    file = PDEBenchFile(path, fields=fields)
    velocity, stress = arrays["t1_fields/velocity"], arrays["t2_fields/stress"]
    channels = [velocity[..., 1], arrays["t0_fields/density"], velocity[..., 0], stress[..., 1, 0]]
    expected = np.stack(channels, axis=-1)[2, 1:5].transpose(1, 2, 0, 3)
    np.testing.assert_array_equal(file.read(2, 1, 5).numpy(), expected)
    np.testing.assert_array_equal(file.read(2, 1, 5, stride=2, time_stride=2).numpy(), expected[::2, ::2, ::2])
    assert (file.channels, file.shape) == (("vy", "rho", "vx", "yx"), (3, 6, 8, 4))
    assert torch.equal(file.t, torch.linspace(0, 1, 6))
    assert torch.equal(file.x, torch.arange(8.0))
    assert file.y is None
    assert (file.eta, file.mach) == (None, None)


@pytest.mark.parametrize("axes", ["btxy", "bxyt", "txyb", "cyxtb", "bctxy", "xbcyt"])
def test_other_orders_of_the_axes(tmp_path, axes):
    random = np.random.RandomState(2)
    velocity, density = random.standard_normal((3, 5, 8, 4, 2)), random.standard_normal((3, 5, 8, 4))
    names = "btxyc"
    order = axes if "c" in axes else axes + "c"
    with h5py.File(tmp_path / "other.hdf5", "w") as file:
        file["velocity"] = velocity.transpose([names.index(letter) for letter in order])
        file["density"] = density.transpose(["btxy".index(letter) for letter in axes.replace("c", "")])
    fields = {"u": "velocity[0]", "rho": "density", "v": "velocity[1]"}
    file = PDEBenchFile(tmp_path / "other.hdf5", fields=fields, axes=axes)
    assert file.shape == (3, 5, 8, 4)
    expected = np.stack([velocity[..., 0], density, velocity[..., 1]], axis=-1)[1, 2:4].transpose(1, 2, 0, 3)
    np.testing.assert_array_equal(file.read(1, 2, 4).numpy(), expected.astype(np.float32))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"vx": "t1_fields/velocity"}, r"\(B, T, X, Y\), but it is of shape .* such as 't1_fields/velocity\[0\]'"),
        ({"vx": "t1_fields/velocity[2]"}, r"\(B, T, X, Y, C\) with component \[2\], but it is of shape"),
        ({"xy": "t2_fields/stress[0]"}, r"\(B, T, X, Y, C\) with component \[0\], but"),
        ({"vx": "t1_fields/speed[0]"}, r"the datasets \['t1_fields/speed'\], but .* found dimensions/time \(6,\), "),
        ({"vx": "t1_fields"}, r"\['t1_fields'\] are missing"),
    ],
)
def test_fields_that_the_file_does_not_have(well, fields, message):
    with pytest.raises(ValueError, match=message):
        PDEBenchFile(well[0], fields=fields)


def test_compressed_chunks_are_read_as_contiguous_ones(path, arrays, tmp_path):
    with h5py.File(tmp_path / "chunked.hdf5", "w") as file:
        for name, array in arrays.items():
            file.create_dataset(name, data=array, chunks=(1, 2, 3, 3), compression="gzip", shuffle=True)
    plain, chunked = PDEBenchFile(path), PDEBenchFile(tmp_path / "chunked.hdf5")
    for options in ({}, {"stride": 2, "time_stride": 3}):
        assert torch.equal(chunked.read(1, 1, **options), plain.read(1, 1, **options))


def test_shapes_that_disagree(path):
    change(path, "Vy", np.zeros((3, 5, 8, 4), np.float32))
    with pytest.raises(ValueError, match=r"to have one shape \(B, T, X, Y\), but got .*'Vy': \(3, 5, 8, 4\)"):
        PDEBenchFile(path)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((3,), {}, r"`trajectory` to be in \[0, 3\), but got 3"),
        ((-1,), {}, r"`trajectory` to be in \[0, 3\), but got -1"),
        ((0, 2, 7), {}, "some of the 6 frames of .*, but got 2 and 7"),
        ((0, 4, 4), {}, "`start` and `stop`"),
        ((0, -2, 4), {}, "`start` and `stop`"),
        ((0,), {"stride": 0}, "`stride` to be at least 1"),
        ((0,), {"time_stride": 0}, "`time_stride` to be at least 1"),
    ],
)
def test_wrong_arguments(path, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        PDEBenchFile(path).read(*arguments, **options)


def test_unknown_channel_order(path):
    with pytest.raises(ValueError, match=r"`channel_order` to be one of \['dpot', 'pdebench'\]"):
        PDEBenchFile(path, channel_order="other")
