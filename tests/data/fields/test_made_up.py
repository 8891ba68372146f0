"""What HDF5 makes up is refused, and what is stored is not."""

import shutil

import h5py
import numpy as np
import pytest

from lightning_farms.data import PDEBenchFile

SHAPE = (6, 3, 4, 4)
FIELDS = {"u": "u"}


def refused(path, fields=FIELDS, axes="btxy"):
    """{trajectory: what reading it says} of those that cannot be read."""
    file, found = PDEBenchFile(path, fields=fields, axes=axes), {}
    for trajectory in range(file.shape.trajectories):
        try:
            file.read(trajectory)
        except ValueError as error:
            found[trajectory] = str(error)
    assert all(f"trajectory {number} of {path} to be stored" in text for number, text in found.items())
    assert sorted(file.made_up) == sorted(found)
    return found


@pytest.fixture
def values():
    return np.random.RandomState(0).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("fill", [None, 1.5])
@pytest.mark.parametrize(("chunks", "lost"), [((1, 3, 4, 4), [4, 5]), ((4, 3, 4, 4), [4, 5]), ((1, 2, 4, 4), [4, 5])])
def test_chunks_that_were_never_written(tmp_path, values, chunks, lost, fill):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("u", SHAPE, "f4", chunks=chunks, fillvalue=fill, compression="gzip")
        dataset[:4] = values[:4]
    assert sorted(refused(tmp_path / "a.h5")) == lost


def test_one_chunk_of_a_trajectory_is_enough(tmp_path, values):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("u", SHAPE, "f4", chunks=(1, 1, 4, 4))
        for place in np.ndindex(SHAPE[:2]):
            if place != (2, 1):
                dataset[place] = values[place]
    assert "`u` was never written" in refused(tmp_path / "a.h5")[2]
    assert len(refused(tmp_path / "a.h5")) == 1


def test_trajectories_along_another_axis(tmp_path, values):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        dataset = file.create_dataset("u", (3, 6, 4, 4), "f4", chunks=(3, 2, 4, 4))
        dataset[:, 2:] = values.swapaxes(0, 1)[:, 2:]
    assert sorted(refused(tmp_path / "a.h5", axes="tbxy")) == [0, 1]


def test_a_contiguous_dataset_that_was_never_written(tmp_path):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file.create_dataset("u", SHAPE, "f4")
    assert len(refused(tmp_path / "a.h5")) == 6


def test_what_is_stored_is_read(tmp_path, values):
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"] = values
        file.create_dataset("v", data=values, chunks=(4, 2, 3, 3))
    file = PDEBenchFile(tmp_path / "a.h5", fields={"u": "u", "v": "v"})
    assert file.made_up == {}
    np.testing.assert_array_equal(file.read(5).numpy()[..., 1], values[5].transpose(1, 2, 0))


@pytest.fixture
def virtual(tmp_path, values):
    """Six trajectories in two files, of the second the rows from 1 on."""
    for name, part in (("one.h5", values[:3]), ("two.h5", np.concatenate((values[:1], values[3:])))):
        with h5py.File(tmp_path / name, "w") as file:
            file.create_dataset("u", data=part, chunks=(1, 3, 4, 4))
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:3] = h5py.VirtualSource("one.h5", "u", (3, 3, 4, 4))
    layout[3:] = h5py.VirtualSource("two.h5", "u", (4, 3, 4, 4))[1:]
    with h5py.File(tmp_path / "all.h5", "w") as file:
        file.create_virtual_dataset("u", layout)
    return tmp_path / "all.h5"


def test_a_virtual_dataset_of_files_that_are_there(virtual, values):
    file = PDEBenchFile(virtual, fields=FIELDS)
    assert file.made_up == {}
    np.testing.assert_array_equal(file.read(4).numpy()[..., 0], values[4].transpose(1, 2, 0))


def test_a_missing_source_is_named(virtual):
    (virtual.parent / "two.h5").unlink()
    found = refused(virtual)
    assert sorted(found) == [3, 4, 5]
    assert "lies in the file two.h5, which is missing" in found[3]


def test_a_damaged_source_is_named(virtual):
    (virtual.parent / "one.h5").write_bytes(b"nothing of the kind")
    assert "one.h5, which cannot be read" in refused(virtual)[0]


def test_a_source_that_has_another_dataset(virtual, values):
    with h5py.File(virtual.parent / "one.h5", "w") as file:
        file["v"] = values
    assert "dataset `u` of one.h5, which is missing" in refused(virtual)[2]


def test_a_source_that_became_shorter(virtual, values):
    for name, lost in (("one.h5", [0, 1, 2]), ("two.h5", [0, 1, 2, 3, 4, 5])):
        with h5py.File(virtual.parent / name, "w") as file:
            file["u"] = values[:2]
        assert sorted(refused(virtual)) == lost


def test_a_source_with_rows_never_written(virtual, values):
    with h5py.File(virtual.parent / "two.h5", "w") as file:
        file.create_dataset("u", (4, 3, 4, 4), "f4", chunks=(1, 3, 4, 4))[:2] = values[:2]
    assert sorted(refused(virtual)) == [4, 5]


def test_a_part_of_a_virtual_dataset_without_a_source(tmp_path, virtual):
    layout = h5py.VirtualLayout(SHAPE, "f4")
    layout[:3, 1:] = h5py.VirtualSource("one.h5", "u", (3, 3, 4, 4))[:, 1:]
    layout[4:] = h5py.VirtualSource("two.h5", "u", (4, 3, 4, 4))[:2]
    with h5py.File(tmp_path / "gaps.h5", "w") as file:
        file.create_virtual_dataset("u", layout)
    found = refused(tmp_path / "gaps.h5")
    assert sorted(found) == [0, 1, 2, 3]
    assert "has no source" in found[3]


def test_values_in_a_raw_file(tmp_path, values, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "raw").write_bytes(values.tobytes())
    with h5py.File("a.h5", "w") as file:
        file.create_dataset("u", SHAPE, "f4", external=[("raw", 0, values.nbytes)])
    assert refused("a.h5") == {}
    (tmp_path / "raw").write_bytes(values.tobytes()[:-4])
    assert "raw, which is cut short" in refused("a.h5")[0]
    (tmp_path / "raw").unlink()
    assert "raw, which is missing" in refused("a.h5")[5]


def test_zeros_that_were_written_are_no_flow_either(tmp_path, values):
    values[2] = 0
    with h5py.File(tmp_path / "a.h5", "w") as file:
        file["u"] = values
    file = PDEBenchFile(tmp_path / "a.h5", fields=FIELDS)
    file.read(1)
    with pytest.raises(ValueError, match="every channel of trajectory 2 is 0 in frames 0 to 2"):
        file.read(2)


def of_parts(path, shape, parts):
    layout = h5py.VirtualLayout(shape, "f4")
    for name, target in parts:
        layout[target] = h5py.VirtualSource(name, "u", SHAPE)[target if len(target) > 1 else slice(None)]
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("u", layout)
    return path


def test_a_part_that_two_sources_fill_does_not_make_up_for_one_that_none_fills(tmp_path, values):
    with h5py.File(tmp_path / "one.h5", "w") as file:
        file["u"] = values
    half, rest = np.s_[:, :, :2], np.s_[:, :, 2:]
    path = of_parts(tmp_path / "all.h5", SHAPE, [("one.h5", half), ("one.h5", half)])
    assert sorted(refused(path)) == list(range(6))
    assert refused(of_parts(tmp_path / "all.h5", SHAPE, [("one.h5", half), ("one.h5", rest)])) == {}


def test_trajectories_that_two_sources_fill_in_turn(tmp_path, values):
    with h5py.File(tmp_path / "even.h5", "w") as file:
        file["u"] = values
    parts = [("even.h5", np.s_[::2,]), ("odd.h5", np.s_[1::2,])]
    path = of_parts(tmp_path / "all.h5", (12, *SHAPE[1:]), parts)
    assert sorted(refused(path)) == [1, 3, 5, 7, 9, 11]
    shutil.copy(tmp_path / "even.h5", tmp_path / "odd.h5")
    assert refused(path) == {}


def test_numbered_sources(tmp_path, values):
    shape, unlimited = (2, *SHAPE[1:]), (h5py.h5s.UNLIMITED, *SHAPE[1:])
    for number in range(3):
        with h5py.File(tmp_path / f"part{number}.h5", "w") as file:
            file["u"] = values[2 * number : 2 * number + 2]
    space = h5py.h5s.create_simple(SHAPE, unlimited)
    space.select_hyperslab((0,) * 4, (h5py.h5s.UNLIMITED, 1, 1, 1), (2, 1, 1, 1), shape)
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_virtual(space, b"part%b.h5", b"u", h5py.h5s.create_simple(shape))
    with h5py.File(tmp_path / "all.h5", "w") as file:
        h5py.h5d.create(file.id, b"u", h5py.h5t.IEEE_F32LE, h5py.h5s.create_simple(SHAPE, unlimited), properties)
    assert refused(tmp_path / "all.h5") == {}
    with h5py.File(tmp_path / "part1.h5", "w") as file:
        file.create_dataset("u", shape, "f4")
    assert sorted(refused(tmp_path / "all.h5")) == [2, 3]


def test_values_in_several_raw_files(tmp_path, values):
    half = values.nbytes // 2
    with h5py.File(tmp_path / "a.h5", "w") as file:
        raw = [(str(tmp_path / "one.raw"), 0, half), (str(tmp_path / "two.raw"), 8, h5py.h5f.UNLIMITED)]
        file.create_dataset("u", data=values, external=raw)
    assert refused(tmp_path / "a.h5") == {}
    with (tmp_path / "two.raw").open("r+b") as raw_file:
        raw_file.truncate(half)
    assert "two.raw, which is cut short" in refused(tmp_path / "a.h5")[0]
