"""Shares of a prediction file, and how they are joined."""

import h5py
import numpy as np
import pytest
import torch

from lightning_farms.data.fields.prediction_file import Joined, Origin, PredictionHeader, PredictionShare, join_shares


def fields(*values, frames=3, size=(4, 2)):
    """Trajectories of constant value, with 2 channels, the second negative."""
    base = torch.tensor(values)[:, None, None, None, None].expand(-1, *size, frames, 1)
    return torch.cat((base, -base), dim=-1)


@pytest.fixture
def share(tmp_path):
    def make(name, *batches):
        written = PredictionShare(tmp_path / name, ["a", "b"], given_frames=1)
        for items in batches:
            origins = [Origin("file.hdf5", 100 + item) for item in items]
            written.append(fields(*map(float, items)), items, origins)
        written.close()
        return written.path

    return make


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
def test_rows_are_in_the_order_of_the_data_set_and_each_once(batches, share, tmp_path):
    shares = [share(f"share{i}", *batch) for i, batch in enumerate(batches)]
    assert join_shares(tmp_path / "all.hdf5", shares, PredictionHeader()) == Joined(3, 0)
    with h5py.File(tmp_path / "all.hdf5") as file:
        assert file["a"].shape == (3, 3, 4, 2)
        assert file["a"].dtype == np.float32
        assert file["a"][:, 0, 0, 0].tolist() == [0, 1, 2]
        np.testing.assert_array_equal(file["b"][...], -file["a"][...])
        assert file["trajectory"][...].tolist() == [100, 101, 102]
        assert set(file) == {"a", "b", "trajectory", "source-file", "x-coordinate", "y-coordinate", "t-coordinate"}
        assert file.attrs["given_frames"] == 1
    assert [path.name for path in tmp_path.iterdir()] == ["all.hdf5"]


@pytest.mark.parametrize(
    ("t", "expected"),
    [
        (None, [0, 1, 2, 3]),
        ([0.0, 0.5, 1.0], [0, 0.5, 1, 1.5]),
        ([0.0, 0.5, 1.0, 9.0], [0, 0.5, 1, 9]),
        ([0.0, 0.5, 1.0, 1.5, 2.0], [0, 0.5, 1, 1.5]),
    ],
)
def test_times_have_one_entry_more_than_frames(t, expected, share, tmp_path):
    header = PredictionHeader(t=None if t is None else torch.tensor(t))
    join_shares(tmp_path / "all.hdf5", [share("one", (0,))], header)
    with h5py.File(tmp_path / "all.hdf5") as file:
        np.testing.assert_allclose(file["t-coordinate"][...], expected)


def test_an_existing_file_is_replaced_only_when_all_is_joined(share, tmp_path):
    path = tmp_path / "all.hdf5"
    path.write_text("precious")
    header = PredictionHeader(physics={"eta": object()})  # which HDF5 cannot store
    with pytest.raises(TypeError):
        join_shares(path, [share("one", (0,)), share("two", (1,))], header)
    assert path.read_text() == "precious"
    assert not [file for file in tmp_path.iterdir() if file.suffix == ".tmp"]


@pytest.mark.parametrize(
    ("later", "items", "message"),
    [
        (fields(1.0, frames=4), (1,), r"have \(3, 4, 2\) frames and cells, but got \(4, 4, 2\)"),
        (fields(1.0)[..., :1], (1,), r"channels \['a', 'b'\], but got shape \(1, 4, 2, 3, 1\)"),
        (fields(1.0), (1, 2), "with 2 trajectories"),
    ],
)
def test_batches_that_do_not_fit(later, items, message, tmp_path):
    share = PredictionShare(tmp_path / "share", ["a", "b"], given_frames=1)
    share.append(fields(0.0), [0], [Origin("", 0)])
    with pytest.raises(ValueError, match=message):
        share.append(later, items, [Origin("", item) for item in items])
    share.close()


def test_a_frame_is_read_without_the_others(tmp_path):
    share = PredictionShare(tmp_path / "share", ["a", "b"], given_frames=1)
    share.append(fields(0.0, frames=40, size=(256, 256)), [0], [Origin("", 0)])
    share.close()
    with h5py.File(tmp_path / "share") as file:
        assert file["a"].chunks == (1, 4, 256, 256)  # a mebibyte


def test_no_room_is_told_before_hdf5_breaks(tmp_path, monkeypatch):
    """HDF5 ends the process when it closes a file on a full disk."""
    share = PredictionShare(tmp_path / "share", ["u"], given_frames=1)
    fields = torch.zeros(2, 64, 64, 3, 1)
    share.append(fields, [0, 1], [Origin("", 0), Origin("", 1)])
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": fields.nbytes})())
    with pytest.raises(OSError, match=r"0.36 MB of free space in .* for the next predictions, but there are 0.10 MB"):
        share.append(fields, [2, 3], [Origin("", 2), Origin("", 3)])
    assert share.rows == 2
    share.close()
