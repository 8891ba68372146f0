"""`lightning-farms simulate` as a shell user meets it."""

from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from lightning_farms.cli import main
from lightning_farms.data import PDEBenchFile, SimulationConfig, simulate_cfd

SMALL = ("--trajectories", "2", "--resolution", "8", "--frames", "3")


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Run the command in process, in a folder of its own: (status, stdout, stderr)."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LIGHTNING_FARMS_TRACEBACK", raising=False)

    def call(*arguments):
        try:
            main(["simulate", *arguments])
        except SystemExit as stop:
            return (stop.code, *capsys.readouterr())
        return (0, *capsys.readouterr())

    return call


def test_the_file_holds_the_set_that_was_asked_for(run):
    options = ("--mach", "0.3", "--eta", "0.02", "--zeta", "0.03", "--seed", "4", "--stress", "full")
    status, out, err = run("new/flow.hdf5", *SMALL, *options, "--windowed_share", "1", "--batch_size", "1")
    expected = simulate_cfd(
        SimulationConfig(2, 8, 3, mach=0.3, eta=0.02, zeta=0.03, stress="full", windowed_share=1.0, seed=4)
    )
    assert (status, out, err) == (
        0,
        "",
        "The folder of OUT, 'new', is not there, and will be made.\n"
        "Written to new/flow.hdf5: 2 trajectories of 3 frames of 8 x 8 cells, 11.2 kB\n",
    )
    assert PDEBenchFile("new/flow.hdf5").shape == (2, 3, 8, 8)
    with h5py.File("new/flow.hdf5") as file:
        np.testing.assert_allclose(file["Vx"][...], expected.vx, rtol=1e-5, atol=1e-6)
        assert dict(file.attrs) == {"eta": 0.02, "zeta": 0.03, "M": 0.3}


def test_an_existing_file_is_kept_unless_told(run):
    Path("flow.hdf5").write_text("old")
    status, _, err = run("flow.hdf5", *SMALL)
    assert status == 1
    assert err.startswith(
        "lightning-farms: error: Expected OUT to be a new file, but 'flow.hdf5' exists. Give --overwr"
    )
    assert Path("flow.hdf5").read_text() == "old"
    assert run("flow.hdf5", *SMALL, "--overwrite")[0] == 0
    assert PDEBenchFile("flow.hdf5").shape.trajectories == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected OUT to be given."),
        (["flow.hdf5", "--mach", "3"], "Expected --mach to be in [0, 2], but got 3.0."),
        (["flow.hdf5", "--resolution", "4"], "Expected --resolution to be an integer of at least 8, but got 4."),
        (["flow.hdf5", "--stress", "bulk"], "Expected --stress to be one of 'unmixed', 'full', but got 'bulk'"),
        (["flow.hdf5", "--batch_size", "0"], "Expected --batch_size to be at least 1, but got 0."),
        (["flow.hdf5", "--device", "tpu"], "device"),
        (["flow.hdf5", "--device", "cuda"], "Expected --device to be one that PyTorch finds, but got 'cuda'"),
        (["flow.hdf5", "--viscosity", "1"], "viscosity"),
    ],
)
def test_wrong_arguments(run, monkeypatch, arguments, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    status, out, err = run(*arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert list(Path().iterdir()) == []


@pytest.mark.parametrize(("target", "message"), [(".", "'.' is a folder"), ("notes.txt/flow.hdf5", "notes.txt")])
def test_places_that_cannot_be_written_to(run, target, message):
    Path("notes.txt").write_text("no folder")
    status, _, err = run(target, *SMALL)
    assert status == 1
    assert err.count("lightning-farms: error:") == 1
    assert message in err


def test_a_flow_that_breaks_down_leaves_no_file(run):
    status, _, err = run("flow.hdf5", *SMALL, "--mach", "2", "--eta", "1000", "--zeta", "1000")
    assert status == 1
    assert "lightning-farms: error: Expected density and pressure to stay positive" in err
    assert list(Path().iterdir()) == []


def test_help_names_every_setting(run):
    status, out, _ = run("--help")
    text = " ".join(out.split())
    assert status == 0
    for option in (*SimulationConfig.__dataclass_fields__, "batch_size", "device", "overwrite"):
        assert f"--{option}" in text
    assert "kinematic shear viscosity, at least 0" in text
