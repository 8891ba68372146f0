"""What version 0.1 saved is read by this one: a configuration, and a checkpoint from which the run goes on bit for bit.

tests/data/saved_by_0_1 was written by 0.1 (commit 8dac0ee) with `lightning-farms fit`: `config.yaml` as the run saved
it, and the checkpoint of its second epoch. `expected.json` is what the checkpoint of the fourth epoch held (tensors as
hashes) when 0.1 went on from there, with nothing changed but the eigenvalues' last bits (commit 1016d8e, which made
them the same on every processor). The arithmetic is that of every x86-64 processor (``ENVIRONMENT``), so that bits can
be compared with those of another machine.
"""

import gzip
import hashlib
import json
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


def plain(value):
    """Tensors as type, shape and hash; keys as text: what JSON holds."""
    if isinstance(value, torch.Tensor):
        digest = hashlib.sha256(value.contiguous().numpy().tobytes()).hexdigest()[:16]
        return {"tensor": [str(value.dtype), list(value.shape), digest]}
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    return value


def known(found, expected):
    """What is found, without the entries of dictionaries that are not expected."""
    if isinstance(found, dict) and isinstance(expected, dict):
        return {name: known(value, expected[name]) for name, value in found.items() if name in expected}
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The run's folder with its data and its checkpoint of the second epoch, where it was stopped."""
    folder = tmp_path_factory.mktemp("saved_by_0_1")
    write_flow(folder / "flow.hdf5")
    (folder / "stopped.ckpt").write_bytes(gzip.decompress((SAVED / "epoch_1.ckpt.gz").read_bytes()))
    return folder


@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="the bits are those of x86-64 processors")
def test_a_run_of_0_1_goes_on_bit_for_bit(folder):
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
    expected = json.loads((SAVED / "expected.json").read_text())
    got = torch.load(folder / "ckpts" / "epoch=3.ckpt", weights_only=True)
    for part in ("global_step", "state_dict", "optimizer_states", "lr_schedulers"):
        assert plain(got[part]) == expected[part], part
    for key, state in expected["callbacks"].items():
        # as text: what is not a number equals itself there; later versions keep more
        found = known(plain(got["callbacks"][key]), state)
        assert json.dumps(found, sort_keys=True) == json.dumps(state, sort_keys=True), key


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
