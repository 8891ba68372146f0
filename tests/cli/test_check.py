"""`lightning-farms check`: what it finds, and its exit status."""

import re
import shutil

import h5py
import numpy as np
import pytest
import yaml

from lightning_farms.cli import main
from lightning_farms.data import CFDDataModule, SimulationConfig, simulate_to_file


@pytest.fixture(scope="module")
def clean(tmp_path_factory):
    path = tmp_path_factory.mktemp("flows") / "flow.hdf5"
    simulate_to_file(path, SimulationConfig(trajectories=4, resolution=8, frames=5), progress=False)
    return path


@pytest.fixture
def path(clean, tmp_path):
    (tmp_path / "flow.hdf5").write_bytes(clean.read_bytes())
    return tmp_path / "flow.hdf5"


def checked(capsys, *args):
    status = 0
    try:
        main(["check", *map(str, args)])
    except SystemExit as end:
        status = end.code
    return status, capsys.readouterr().out


def test_a_clean_file(path, capsys):
    status, out = checked(capsys, path)
    assert status == 0
    assert "4 trajectories, 5 frames, 8 x 8 cells, channels Vx, Vy, density, pressure, time step 0.25" in out
    assert out.endswith("nothing is wrong\n")


def test_what_is_wrong_is_told_in_full(path, capsys):
    with h5py.File(path, "r+") as file:
        file["Vx"][1, 4, 2, 2] = np.nan
        file["Vy"][1, 2, :2, 0] = np.inf
        file["density"][2, 0, 0, 0] = -1.0
        file["pressure"][3] = 0.0
    status, out = checked(capsys, path)
    assert status == 1
    for line in (
        "trajectory 1, channel Vx, frame 4: 1 NaN",
        "trajectory 1, channel Vy, frame 2: 2 infinite",
        "trajectory 2, channel density, frame 0: negative",
        "trajectory 3, channel pressure, frame 0: zero",
        "trajectory 3, channel pressure: constant (0 everywhere)",
        "3 trajectories with faults; leave out with --data.skip '[1, 2, 3]'",
    ):
        assert f"  {line}\n" in out


def test_what_hdf5_makes_up(path, capsys):
    with h5py.File(path, "r+") as file:
        del file["Vx"]
        file.create_dataset("Vx", (4, 5, 8, 8), "f4", chunks=(1, 5, 8, 8))[:3] = np.arange(960.0).reshape(3, 5, 8, 8)
    status, out = checked(capsys, path)
    assert (status, "trajectory 3: not stored, so that HDF5 makes up its values: `Vx` was never written" in out) == (
        1,
        True,
    )
    assert "--data.skip '[3]'" in out


def test_several_files_are_all_looked_at(path, capsys):
    path.with_name("broken.hdf5").write_bytes(path.read_bytes()[:3000])
    status, out = checked(capsys, path.parent / "*.hdf5")
    assert status == 1
    assert out.index("broken.hdf5\n  cannot be read: Expected") < out.index("flow.hdf5\n  4 trajectories")
    assert "nothing is wrong" in out


def test_of_several_files_what_to_skip_names_the_file(path, capsys):
    other = shutil.copy(path, path.with_name("other.hdf5"))
    with h5py.File(path, "r+") as file:
        file["density"][...] += 1.0
        file["Vx"][2, 1, 0, 0] = np.nan
    _, out = checked(capsys, path, other)
    (skip,) = re.findall("--data.skip '(.*)'", out)
    data = CFDDataModule([path, other], skip=yaml.safe_load(skip), in_timesteps=2, test_fraction=0.25)
    data.setup("fit")
    assert data.train_items == 5


def test_a_channel_that_stands_under_two_names(path, capsys):
    with h5py.File(path, "r+") as file:
        del file["Vy"]
        file["Vy"] = file["Vx"]
    status, out = checked(capsys, path)
    assert status == 1
    assert "  trajectory 3, channel Vy: the same as Vx\n" in out


def test_a_number_for_each_trajectory_is_no_constant_field(path, capsys):
    with h5py.File(path, "r+") as file:
        for name in ("nu", "kappa"):
            file[name] = np.float32(0.1)
            file[name].attrs.update(sample_varying=False, time_varying=False, dim_varying=[False, False])
    status, out = checked(capsys, path, "--fields", "{u: Vx, nu: nu, kappa: kappa}")
    assert (status, "channels u, nu, kappa" in out) == (0, True)


def test_a_link_to_itself(tmp_path, capsys):
    (tmp_path / "loop.h5").symlink_to("loop.h5")
    status, out = checked(capsys, tmp_path / "loop.h5")
    assert (status, "loop.h5 to be a complete HDF5 file" in out) == (1, True)


def test_other_fields(path, capsys):
    status, out = checked(capsys, path, "--fields", '{"u": "Vx"}')
    assert (status, "channels u," in out) == (0, True)


def test_no_such_file(capsys, tmp_path):
    assert checked(capsys, tmp_path / "none.hdf5")[0] == 1
    assert checked(capsys, tmp_path / "none*.hdf5")[0] == 1
