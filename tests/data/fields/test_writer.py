import shutil
from contextlib import nullcontext

import h5py
import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

from lightning_farms.data import SimulationConfig, simulate_cfd, simulate_to_file, write_pdebench
from tests.forked import run_forked

SMALL = SimulationConfig(trajectories=5, resolution=8, frames=3, mach=0.2, eta=0.02, zeta=0.03)


@pytest.fixture
def writes(monkeypatch):
    """The slices of trajectories that are written; where one does not start at zero, ``writes.error`` is raised."""

    class Writes(list):
        error = None

    seen, write = Writes(), h5py.Dataset.__setitem__

    def watched(dataset, part, values):
        if part.start and seen.error:
            raise seen.error
        seen.append(part)
        write(dataset, part, values)

    monkeypatch.setattr(h5py.Dataset, "__setitem__", watched)
    return seen


def check_layout(path, flow):
    with h5py.File(path) as file:
        assert sorted(file) == ["Vx", "Vy", "density", "pressure", "t-coordinate", "x-coordinate", "y-coordinate"]
        for name, field in {"density": flow.density, "pressure": flow.pressure, "Vx": flow.vx, "Vy": flow.vy}.items():
            assert (file[name].dtype, file[name].chunks, file[name].compression) == (np.float32, None, None)
            torch.testing.assert_close(torch.from_numpy(file[name][...]), field, rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose(file["t-coordinate"][...], [0, 0.5, 1, 1.5])
        np.testing.assert_allclose(file["x-coordinate"][...], np.arange(8) / 8 + 1 / 16)
        assert file["y-coordinate"].shape == (8,)
        assert dict(file.attrs) == {"eta": 0.02, "zeta": 0.03, "M": 0.2}


def test_written_layout(tmp_path):
    flow = simulate_cfd(SMALL)
    write_pdebench(tmp_path / "new folder" / "flow.hdf5", flow)
    check_layout(tmp_path / "new folder" / "flow.hdf5", flow)


def test_simulating_in_batches_writes_the_same_set(tmp_path, capsys):
    simulate_to_file(tmp_path / "flow.hdf5", SMALL, batch_size=2)
    check_layout(tmp_path / "flow.hdf5", simulate_cfd(SMALL))
    shown = capsys.readouterr()
    assert "Simulating 5 flows at 8x8" in shown.err
    assert shown.out == ""


def test_no_output_without_progress(tmp_path, capsys):
    simulate_to_file(tmp_path / "flow.hdf5", SimulationConfig(trajectories=1, resolution=8, frames=2), progress=False)
    shown = capsys.readouterr()
    assert (shown.out, shown.err) == ("", "")


@pytest.mark.parametrize(
    ("resolution", "trajectories", "batches"),
    [(8, 513, [slice(0, 512), slice(512, 513)]), (9, 405, [slice(0, 404), slice(404, 405)])],
)
def test_batches_fit_the_device(tmp_path, writes, resolution, trajectories, batches):
    """2**15 cells on a processor."""
    config = SimulationConfig(trajectories, resolution, frames=2, mach=0.0, eta=0.0, zeta=0.0)
    simulate_to_file(tmp_path / "flow.hdf5", config, progress=False)
    assert writes == [batch for batch in batches for _ in range(4)]


def test_an_existing_file_is_replaced_only_by_a_complete_one(tmp_path, writes):
    path = tmp_path / "flow.hdf5"
    path.write_text("old")
    writes.error = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        simulate_to_file(path, SMALL, batch_size=2, progress=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["flow.hdf5"]
    assert path.read_text() == "old"
    assert writes == [slice(0, 2)] * 4


def test_a_killed_run_leaves_no_file_under_the_name(tmp_path):
    """The process dies without any clean-up once half the set is written and flushed."""
    script = f"""
import os
import h5py
from lightning_farms.data import SimulationConfig, simulate_to_file
write = h5py.Dataset.__setitem__
def die_at_the_second_batch(dataset, part, values):
    if part.start:
        dataset.file.flush()
        os._exit(9)
    write(dataset, part, values)
h5py.Dataset.__setitem__ = die_at_the_second_batch
config = SimulationConfig(trajectories=4, resolution=8, frames=2)
simulate_to_file({str(tmp_path / "flow.hdf5")!r}, config, batch_size=2)
"""
    (tmp_path / "said").mkdir()
    (tmp_path / "said" / "script.py").write_text(script)
    run_forked(((tmp_path / "said" / "script.py",), {}), folder=tmp_path / "said", code=9)
    shutil.rmtree(tmp_path / "said")
    left = [entry.name for entry in tmp_path.iterdir()]
    assert len(left) == 1
    assert left[0].endswith(".tmp")
    simulate_to_file(tmp_path / "flow.hdf5", SMALL, progress=False)
    check_layout(tmp_path / "flow.hdf5", simulate_cfd(SMALL))


def test_fields_that_do_not_fit(tmp_path):
    flow = simulate_cfd(SMALL)
    with pytest.raises(ValueError, match=r"`simulation` to hold fields of one shape .* that fits its coordinates"):
        write_pdebench(tmp_path / "flow.hdf5", flow._replace(vx=flow.vx[:2]))
    with pytest.raises(ValueError, match=r"coordinates of lengths \(2, 8, 8\)"):
        write_pdebench(tmp_path / "flow.hdf5", flow._replace(t=flow.t[:2]))
    assert list(tmp_path.iterdir()) == []


def test_wrong_batch_size(tmp_path):
    with pytest.raises(ValueError, match="`batch_size` to be at least 1, but got 0"):
        simulate_to_file(tmp_path / "flow.hdf5", SMALL, batch_size=0)


class Threads(TorchFunctionMode):
    """Notes with how many threads PyTorch computes; the first computation may fail."""

    def __init__(self, fails):
        super().__init__()
        self.fails, self.seen = fails, set()

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is not torch.device:
            self.seen.add(torch.get_num_threads())
            if self.fails:
                raise RuntimeError("out of positive numbers")
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("batch_size", "expected", "fails"),
    [
        (5, 1, False),
        (5, 1, True),
        (4095, 1, True),
        (4096, 3, True),  # 2**18 cells
        pytest.param(4096, 3, False, marks=pytest.mark.slow),
    ],
)
def test_few_cells_take_one_thread_and_the_setting_comes_back(tmp_path, batch_size, expected, fails):
    config = SimulationConfig(batch_size, resolution=8, frames=2, mach=0.0, eta=0.0, zeta=0.0)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with Threads(fails) as threads, pytest.raises(RuntimeError, match="positive") if fails else nullcontext():
            simulate_to_file(tmp_path / "flow.hdf5", config, batch_size=batch_size, progress=False)
        assert threads.seen == {expected}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_a_set_that_the_disk_has_no_room_for(tmp_path, monkeypatch):
    config = SimulationConfig(trajectories=2, resolution=8, frames=3)
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 5_000})())
    with pytest.raises(OSError, match=r"flow.hdf5' to be .* kB, but only 5.0 kB are free"):
        simulate_to_file(tmp_path / "flow.hdf5", config, progress=False)
    assert not list(tmp_path.iterdir())
