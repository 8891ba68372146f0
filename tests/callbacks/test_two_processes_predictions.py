"""Predictions of several processes that were interrupted go on, with as many processes or with one."""

import json

import h5py
import numpy as np
import pytest

from tests.callbacks.two_processes_launch import launch
from tests.callbacks.two_processes_predictions import predict
from tests.data.fields.labelled_flows import write_labelled


@pytest.mark.slow
def test_an_interrupted_prediction_of_two_processes_goes_on(tmp_path):
    write_labelled(tmp_path / "flow.hdf5", trajectories=7, offset=1)
    assert predict(tmp_path, "last.hdf5", limit=6, processes=1) == 6
    launch("tests.callbacks.two_processes_predictions", tmp_path)
    first, second = (json.loads((tmp_path / f"counts{rank}.json").read_text()) for rank in (0, 1))
    assert (first["first"], second["first"], first["rest"] + second["rest"]) == (1, 2, 4)
    assert (first["last"], second["last"]) == (1, 1), "both take the one that is left: Lightning wants one for each"
    assert len(list(tmp_path.glob("*.part"))) == 2, "of the third"
    assert predict(tmp_path, "one.hdf5", processes=1) == 3
    predict(tmp_path, "straight.hdf5", processes=1)
    assert list(tmp_path.glob("*.part")) == []
    with h5py.File(tmp_path / "straight.hdf5") as straight, h5py.File(tmp_path / "flow.hdf5") as flow:
        np.testing.assert_array_equal(straight["Vx"][:, 3:], 2 * flow["Vx"][:, 2:3].repeat(5, axis=1))
        for name in ("two.hdf5", "last.hdf5", "one.hdf5"):
            with h5py.File(tmp_path / name) as file:
                assert set(file) == set(straight)
                for dataset in straight:
                    np.testing.assert_array_equal(file[dataset][...], straight[dataset][...])
