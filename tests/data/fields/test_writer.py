import subprocess
import sys

import h5py
import numpy as np
import pytest
import torch

from lightning_farms.data import SimulationConfig, simulate_cfd, simulate_to_file, write_pdebench
from lightning_farms.data.fields import writer

SMALL = SimulationConfig(trajectories=5, resolution=8, frames=3, mach=0.2, eta=0.02, zeta=0.03)


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


def test_batches_fit_the_device(tmp_path, monkeypatch):
    seen = []

    def watched(config, *, indices, **options):
        seen.append(indices)
        return simulate_cfd(config, indices=indices, **options)

    monkeypatch.setattr(writer, "simulate_cfd", watched)
    monkeypatch.setattr(writer, "_CELLS_AT_ONCE", {"cpu": 150})
    simulate_to_file(tmp_path / "flow.hdf5", SMALL, progress=False)
    assert seen == [range(2), range(2, 4), range(4, 5)]


def test_an_existing_file_is_replaced_only_by_a_complete_one(tmp_path, monkeypatch):
    path = tmp_path / "flow.hdf5"
    path.write_text("old")
    monkeypatch.setattr(writer, "simulate_cfd", fail_at_second_batch())
    with pytest.raises(KeyboardInterrupt):
        simulate_to_file(path, SMALL, batch_size=2, progress=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["flow.hdf5"]
    assert path.read_text() == "old"


def fail_at_second_batch():
    def simulate(config, *, indices, **options):
        if indices.start > 0:
            raise KeyboardInterrupt
        return simulate_cfd(config, indices=indices, **options)

    return simulate


def test_a_killed_run_leaves_no_file_under_the_name(tmp_path):
    """The process dies without any clean-up once half the set is written and flushed."""
    script = f"""
import os
from lightning_farms.data import SimulationConfig, simulate_to_file
from lightning_farms.data.fields import writer
write_part = writer._write_part
def die_after_the_first(file, part, start):
    write_part(file, part, start)
    file.flush()
    os._exit(9)
writer._write_part = die_after_the_first
config = SimulationConfig(trajectories=4, resolution=8, frames=2)
simulate_to_file({str(tmp_path / "flow.hdf5")!r}, config, batch_size=2)
"""
    assert subprocess.run([sys.executable, "-c", script], check=False, capture_output=True).returncode == 9
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


@pytest.mark.parametrize(("cells", "expected"), [(1, 3), (2**20, 1)])
@pytest.mark.parametrize("fails", [False, True])
def test_few_cells_take_one_thread_and_the_setting_comes_back(tmp_path, monkeypatch, cells, expected, fails):
    seen = []

    def watched(config, **options):
        seen.append(torch.get_num_threads())
        if fails:
            raise RuntimeError("out of positive numbers")
        return simulate_cfd(config, **options)

    monkeypatch.setattr(writer, "_CELLS_FOR_THREADS", cells)
    monkeypatch.setattr(writer, "simulate_cfd", watched)
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        if fails:
            with pytest.raises(RuntimeError, match="out of positive numbers"):
                simulate_to_file(tmp_path / "flow.hdf5", SMALL, progress=False)
        else:
            simulate_to_file(tmp_path / "flow.hdf5", SMALL, progress=False)
        assert set(seen) == {expected}
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)
