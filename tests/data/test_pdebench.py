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
    return {name: random.standard_normal(SHAPE).astype(np.float32) for name in FIELDS}


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
    item = PDEBenchFile(path).read(1, 2, 5, channel_order=order)
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
    assert torch.equal(item[..., 3].amax((0, 1)), 7.0 * (torch.arange(11) == 3))
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
    (tmp_path / "page.hdf5").write_text("<html>Not found</html>" * 100)
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
    with pytest.raises(OSError, match=r"Expected .* to be a complete HDF5 file"):
        file.read(1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_non_finite_values_are_named_when_read(path, arrays, bad):
    array = arrays["Vy"].copy()
    array[1, 4, 2, 2] = bad
    change(path, "Vy", array)
    file = PDEBenchFile(path)
    file.read(1, 0, 4)
    with pytest.raises(
        ValueError, match=r"`Vy` of .*flow.hdf5 to be finite, but trajectory 1 has NaN .* frames 2 to 5"
    ):
        file.read(1, 2, 6)


def test_missing_dataset_names_what_is_there(path):
    change(path, "pressure", None)
    with pytest.raises(
        ValueError, match=r"\['pressure'\] are missing: found \['Vx', 'Vy', 'density', 'x-coordinate'\]"
    ):
        PDEBenchFile(path)


@pytest.mark.parametrize(
    ("value", "found"),
    [(np.zeros(SHAPE[1:], np.float32), r"float32 of shape \(6, 8, 4\)"), (np.zeros(SHAPE, np.int32), "int32 of shape")],
)
def test_wrong_rank_or_type(path, value, found):
    change(path, "density", value)
    with pytest.raises(
        ValueError, match=rf"`density` .* floating-point numbers of shape \(B, T, X, Y\), but got {found}"
    ):
        PDEBenchFile(path)


def test_shapes_that_disagree(path):
    change(path, "Vy", np.zeros((3, 5, 8, 4), np.float32))
    with pytest.raises(ValueError, match=r"to have one shape, but got .*'Vy': \(3, 5, 8, 4\)"):
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
        ((0,), {"channel_order": "other"}, r"`channel_order` to be one of \['dpot', 'pdebench'\]"),
    ],
)
def test_wrong_arguments(path, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        PDEBenchFile(path).read(*arguments, **options)
