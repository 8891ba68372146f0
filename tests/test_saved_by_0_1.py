"""What version 0.1 saved is read by this one: a configuration, and a checkpoint from which the run goes on as it did.

tests/data/saved_by_0_1 was written by 0.1 (commit 8dac0ee) with `lightning-farms fit`: `config.yaml` as the run saved
it, and the checkpoint of its second epoch. `epoch_3.ckpt.gz` is what the checkpoint of the fourth epoch held when 0.1
went on from there (commit 1016d8e). Processors differ in the last bits, also with the arithmetic that all x86-64 ones
have (``ENVIRONMENT``): on the Intel Xeon where it was written this version had the bits of 0.1, on an AMD EPYC others.
"""

import gzip
import io
import os
import platform
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
import yaml
from lightning.pytorch import Trainer

from lightning_farms.data import CFDDataModule
from lightning_farms.models import OperatorModule

SAVED = Path(__file__).parent / "data" / "saved_by_0_1"
ENVIRONMENT = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_CBWR": "COMPATIBLE",
    "MKL_NUM_THREADS": "1",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "Agg",
}


def write_flow(path):
    """The eight flows of 8 x 8 cells that version 0.1 was trained on, from NumPy's frozen generator."""
    draw = np.random.RandomState(7)
    flows, frames, cells = 8, 6, 8
    k = np.arange(cells) * 2 * np.pi / cells
    time = np.arange(frames)[None, :, None, None] * 0.2

    def field(base, amplitude):
        phase = draw.uniform(0, 2 * np.pi, (flows, 1, 1, 1))
        speed = draw.uniform(0.5, 1.5, (flows, 1, 1, 1))
        wave = np.sin(k[None, None, :, None] + phase + speed * time) * np.cos(k[None, None, None, :] - phase)
        noise = draw.standard_normal((flows, frames, cells, cells))
        return (base + amplitude * wave + 0.02 * noise).astype("f4")

    with h5py.File(path, "w") as file:
        for name, base, amplitude in (("density", 2, 0.5), ("pressure", 5, 1), ("Vx", 0, 1), ("Vy", 0, 1)):
            file[name] = field(base, amplitude)
        for name in ("x-coordinate", "y-coordinate"):
            file[name] = ((np.arange(cells) + 0.5) / cells).astype("f4")
        file["t-coordinate"] = np.linspace(0, 1, frames + 1).astype("f4")
        file.attrs.update(eta=0.01, zeta=0.01, M=0.1)


TOLERANCE = 2e-5  # of a number, or of a tensor's largest; other instructions change these runs by up to 3e-6


def differs(found, expected):
    if isinstance(expected, torch.Tensor):
        alike = found.dtype == expected.dtype and found.shape == expected.shape
        largest = expected.abs().max().item() if expected.is_floating_point() and expected.numel() else 0
        return not (alike and torch.allclose(found, expected, rtol=0, atol=TOLERANCE * largest, equal_nan=True))
    if isinstance(expected, float):
        return found != pytest.approx(expected, rel=TOLERANCE, nan_ok=True)
    return found != expected


def differences(found, expected, path=""):
    """Paths of what differs; what is found may have more entries in its dictionaries."""
    if isinstance(expected, dict):
        pairs = [(name, found.get(name), value) for name, value in expected.items()]
    elif isinstance(expected, (list, tuple)) and len(found) == len(expected):
        pairs = list(zip(range(len(expected)), found, expected, strict=True))
    else:
        return [path] if differs(found, expected) else []
    return [each for name, one, other in pairs for each in differences(one, other, f"{path}/{name}")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run's folder with its data and its checkpoint of the second epoch, where it was stopped."""
    folder = tmp_path_factory.mktemp("saved_by_0_1")
    write_flow(folder / "flow.hdf5")
    (folder / "stopped.ckpt").write_bytes(checkpoint_of(1))
    return folder


def checkpoint_of(epoch):
    return gzip.decompress((SAVED / f"epoch_{epoch}.ckpt.gz").read_bytes())


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the numbers are those of x86-64 processors")
def test_a_run_of_0_1_goes_on_as_it_did(folder):
    command = [sys.executable, "-m", "lightning_farms", "fit", "--config", str(SAVED / "config.yaml")]
    ended = subprocess.run(
        [*command, "--ckpt_path", "stopped.ckpt"],
        cwd=folder,
        env={**os.environ, **ENVIRONMENT, "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    stopped, expected = (torch.load(io.BytesIO(checkpoint_of(epoch)), weights_only=True) for epoch in (1, 3))
    got = torch.load(folder / "ckpts" / "epoch=3.ckpt", weights_only=True)
    by_steps = next(state for name, state in expected["callbacks"].items() if name.startswith("WeightDecayBalance"))
    by_steps["analysed"]["epochs"] = by_steps["history"]["epochs"][2] = 3  # at step 6, which ends the third epoch
    assert differences(got, expected) == []
    for part in ("state_dict", "optimizer_states", "callbacks"):  # what the two epochs changed
        assert len(differences(stopped[part], expected[part])) > 3, part


def test_its_checkpoint_makes_module_and_data_again(folder, monkeypatch):
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # Lightning's own, with jsonargparse 4.53
    module = OperatorModule.load_from_checkpoint(folder / "stopped.ckpt", map_location="cpu")
    assert module.network.config["embed_dim"] == 16
    config = yaml.safe_load((SAVED / "config.yaml").read_text())
    options = {key: value for key, value in config["data"].items() if key != "simulation"}
    data = CFDDataModule(**options | {"path": str(folder / "flow.hdf5")})
    trainer = Trainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False)
    (errors,) = trainer.test(module, datamodule=data, verbose=False)
    assert 0 < errors["test/l2re"] < 1
