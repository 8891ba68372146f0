"""Parts of a prediction file: what they hold at any moment, and how they become one file."""

import resource

import h5py
import numpy as np
import pytest
import torch

from lightning_farms.data.fields.prediction_file import (
    Joined,
    Origin,
    PredictionHeader,
    PredictionPart,
    create_part,
    finish_parts,
)
from lightning_farms.data.fields.prediction_parts import digest_of, done_items, part_path, parts_of

HEADER = PredictionHeader(["a", "b"], 1)


def fields(*values, frames=3, size=(4, 2)):
    """Trajectories of constant value, with 2 channels, the second negative."""
    base = torch.tensor(values)[:, None, None, None, None].expand(-1, *size, frames, 1)
    return torch.cat((base, -base), dim=-1)


def begun(path, *batches, header=HEADER, count=3, first=0):
    origins = [Origin("file.hdf5", 100 + item) for item in range(first, first + count)]
    part = create_part(path, header, (3, 4, 2), origins, first=first)
    for items in batches:
        part.write(fields(*map(float, items)), items)
    return part


@pytest.mark.parametrize(
    "batches",
    [
        [[(0, 1), (2,)]],
        [[(2, 0), (1,)]],
        [[(0, 2)], [(1,)]],
        [[(1, 2)], [(0, 1)]],  # the second has one that the first has
        [[(2,)], [(1,)], [(0,)]],
    ],
)
def test_rows_are_in_the_order_of_the_data_set_and_each_once(batches, tmp_path):
    parts = [begun(tmp_path / f"part{i}", *batch) for i, batch in enumerate(batches)]
    assert finish_parts(tmp_path / "all.hdf5", parts, HEADER) == Joined(3, 0)
    with h5py.File(tmp_path / "all.hdf5") as file:
        assert file["a"].shape == (3, 3, 4, 2)
        assert file["a"].dtype == np.float32
        assert file["a"][:, 0, 0, 0].tolist() == [0, 1, 2]
        np.testing.assert_array_equal(file["b"][...], -file["a"][...])
        assert file["trajectory"][...].tolist() == [100, 101, 102]
        names = {"a", "b", "state", "trajectory", "source-file", "x-coordinate", "y-coordinate", "t-coordinate"}
        assert set(file) == names
        assert dict(file.attrs).keys() == {"channels", "given_frames"}
    assert [path.name for path in tmp_path.iterdir()] == ["all.hdf5"]


def test_those_that_are_missing_are_left_out(tmp_path):
    parts = [begun(tmp_path / "one", (2,), count=3), begun(tmp_path / "two", (4, 5), count=3, first=3)]
    parts[1].write(fields(float("nan")), [4])
    assert finish_parts(tmp_path / "all.hdf5", parts, HEADER) == Joined(3, 1)
    with h5py.File(tmp_path / "all.hdf5") as file:
        np.testing.assert_array_equal(file["a"][:, 0, 0, 0], [2, np.nan, 5])
        assert file["trajectory"][...].tolist() == [102, 104, 105]
        assert file["state"][...].tolist() == [1, 2, 1]


def test_what_is_there_is_known_at_any_moment(tmp_path):
    part = begun(tmp_path / "a.hdf5.0.part", (1,), header=PredictionHeader(["a", "b"], 1, settings={"weights": "x"}))
    copy = tmp_path / "copy"
    copy.write_bytes(part.path.read_bytes())  # as a process that is killed leaves it
    reopened = PredictionPart(copy)
    assert (reopened.done, reopened.settings, reopened.shape) == ([1], {"weights": "x"}, (3, 3, 4, 2))
    reopened.write(fields(2.0), [2])
    assert finish_parts(tmp_path / "all.hdf5", [reopened], HEADER) == Joined(2, 0)
    part.close()
    assert parts_of(tmp_path / "a.hdf5") == [part_path(tmp_path / "a.hdf5", 0)] == [part.path]
    assert done_items(tmp_path / "a.hdf5", {"weights": "x"}, overwrite=False) == [1]
    with pytest.raises(FileExistsError, match="these differ: weights"):
        done_items(tmp_path / "a.hdf5", {"weights": "y"}, overwrite=False)
    assert done_items(tmp_path / "a.hdf5", {"weights": "y"}, overwrite=True) == []
    assert parts_of(tmp_path / "a.hdf5") == []


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ([0.0, 0.5, 1.0], [0, 0.5, 1, 1.5]),
        ([0.0, 0.5, 1.0, 9.0], [0, 0.5, 1, 9]),
        ([0.0, 0.5, 1.0, 1.5, 2.0], [0, 0.5, 1, 1.5]),
        ([0.5, 1.0], [0.5, 1.0, 1.5, 2.0]),
    ],
)
def test_times_have_one_entry_more_than_frames(t, expected, tmp_path):
    begun(tmp_path / "a", header=PredictionHeader(["a"], 1, t=None if t is None else torch.tensor(t))).close()
    with h5py.File(tmp_path / "a") as file:
        np.testing.assert_allclose(file["t-coordinate"][...], expected)


def test_a_part_appears_as_a_whole(tmp_path):
    (tmp_path / "a").write_text("precious")
    with pytest.raises(TypeError):
        begun(tmp_path / "a", header=PredictionHeader(["a"], 1, physics={"eta": object()}))  # no value of HDF5
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "precious")]


@pytest.mark.parametrize(
    ("later", "items", "message"),
    [
        (fields(1.0, frames=4), (1,), r"have \(3, 4, 2\) frames and cells, but got \(4, 4, 2\)"),
        (fields(1.0)[..., :1], (1,), r"channels \['a', 'b'\], but got shape \(1, 4, 2, 3, 1\)"),
        (fields(1.0), (1, 2), "with 2 trajectories"),
    ],
)
def test_batches_that_do_not_fit(later, items, message, tmp_path):
    part = begun(tmp_path / "part", (0,))
    with pytest.raises(ValueError, match=message):
        part.write(later, items)
    assert part.done == [0]
    part.close()


def test_no_room_is_told_before_anything_is_predicted(tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100_000})())
    with pytest.raises(OSError, match=r"the predictions take 262.7 kB, but only 100.0 kB are free in "):
        begun(tmp_path / "part")
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_meanwhile(tmp_path):
    """A limit for files stands for it: to write beyond is the same ordinary error."""
    part = create_part(
        tmp_path / "part", PredictionHeader(["a"], 1), (3, 64, 64), [Origin("", item) for item in (0, 1)]
    )
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4 * 64 * 64 * 3 + 2**15, limits[1]))
    try:
        part.write(torch.ones(1, 64, 64, 3, 1), [0])
        with pytest.raises(OSError, match=r"Expected free space in .* for the next predictions, but there is none"):
            part.write(torch.ones(1, 64, 64, 3, 1), [1])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    part.close()
    part = PredictionPart(part.path)
    assert part.done == [0]
    part.close()


def test_weights_are_told_apart():
    module = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.BatchNorm1d(2)).bfloat16()
    before = digest_of(module)
    assert digest_of(module) == before
    module[1].num_batches_tracked += 1
    assert digest_of(module) != before
