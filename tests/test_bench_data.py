"""The files that the benchmark of reading writes are read, by ours and whole, in a small form."""

import argparse

import h5py
import numpy as np
import pytest

from tests.benchmarks import bench_data


@pytest.mark.parametrize("write", [bench_data.write_random, bench_data.write_repeated])
def test_small(write, tmp_path):
    path = tmp_path / "flows.hdf5"
    write(path, 40, 16)
    with h5py.File(path) as file:
        for name in bench_data.FIELDS:
            assert file[name].shape == (40, bench_data.FRAMES, 16, 16)
        repeated = bool(np.array_equal(file["Vx"][3], file["Vx"][19]))
        assert repeated == (write is bench_data.write_repeated)
        assert not np.array_equal(file["Vx"][3], file["Vx"][4])
    args = argparse.Namespace(batch=4, workers=0, batches=2)
    found = bench_data.ours(str(path), args)
    assert found["first"] > 0
    assert found["rate"] > 0
    assert bench_data.whole_file(str(path), args)["first"] > 0
