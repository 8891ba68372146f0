"""What Weights & Biases (offline) and MLflow (SQLite) hold after a run, read back with their own readers."""

import contextlib
import json
import struct
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import MLFlowLogger, WandbLogger
from PIL import Image

from lightning_farms import SpectralMonitor, TBSigmoid
from lightning_farms.loggers.scalars import log_scalars

pytestmark = pytest.mark.slow

LAYERS = ("conv", "hidden", "head")
FIGURES = {f"farms/{quantity}_map_labelled" for quantity in ("alpha", "learning_rate")}
FIGURES |= {"farms/alpha_over_depth", "farms/esd/conv", "farms/esd/head"}
KEYS = {f"{part}/{layer}" for part in ("farms/alpha", "layer_lr/SGD") for layer in LAYERS}


def balance():
    return TBSigmoid(figures_every_n_epochs=2, esd_layers=2, summary=False)


@pytest.fixture
def wandb_run(tmp_path, monkeypatch):
    """Lets WandbLogger write into tmp_path, offline; finished() gives the steps and {key: value} of each record."""
    import wandb

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))

    def finished():
        wandb.finish()
        wandb.teardown()  # waits until the process that writes the log has ended
        (path,) = tmp_path.rglob("*.wandb")
        return path.parent / "files", list(records(path))

    yield finished
    with contextlib.suppress(Exception):
        wandb.finish()


def records(path):
    """(step, {key: value}) of each line of a run's history, from its transaction log."""
    from wandb.proto import wandb_internal_pb2

    for data in log_entries(path.read_bytes()[7:], start=7):
        record = wandb_internal_pb2.Record.FromString(data)
        if record.WhichOneof("record_type") == "history":
            items = {}
            for item in record.history.item:
                key, *inner = item.nested_key or [item.key]
                (items.setdefault(key, {}) if inner else items)[inner[0] if inner else key] = json.loads(
                    item.value_json
                )
            yield record.history.step.num, items


def log_entries(data, start):
    """Entries of LevelDB's log format: blocks of 32 KiB; checksum, length and type before each piece of an entry."""
    position, entry = 0, b""
    while position + 7 <= len(data):
        left = 32768 - (start + position) % 32768
        if left < 7:
            position += left
            continue
        length, kind = struct.unpack_from("<HB", data, position + 4)
        entry += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole entry, or its last piece
            yield entry
            entry = b""


def test_wandb(small_net, loader, make_trainer, wandb_run, tmp_path):
    logger = WandbLogger(project="farms", save_dir=tmp_path, offline=True)
    callback = balance()
    make_trainer([callback], logger=logger, max_epochs=3).fit(small_net(), loader)
    files, history = wandb_run()
    internal = [step for step, _ in history]
    assert internal == sorted(internal)
    steps = [items["trainer/global_step"] for _, items in history if "trainer/global_step" in items]
    assert steps == sorted(steps)
    found = {}
    for _, items in history:
        for key, value in items.items():
            found.setdefault(key, []).append(value)
    assert found.keys() >= KEYS | FIGURES | {"farms/alpha_map", "farms/alpha_histogram", "farms/options"}
    rows = dict(zip(callback.history.layers("alpha"), callback.history.rows("alpha"), strict=True))
    assert found["farms/alpha/head"] == pytest.approx(rows["head"])
    assert len(found["farms/alpha_map"]) == 4
    for key in FIGURES:
        for entry in found[key]:
            for name in entry["filenames"]:
                image = np.asarray(Image.open(files / name).convert("RGB"))
                assert min(image.shape[:2]) >= 200
                assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    assert sum(found["farms/alpha_histogram"][-1]["values"]) == len(LAYERS)
    table = json.loads((files / found["farms/options"][0]["path"]).read_text())
    assert "### TBSigmoid" in table["data"][0][0]


@pytest.fixture
def mlflow_logger(tmp_path):
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    return MLFlowLogger("farms", tracking_uri=uri, artifact_location=(tmp_path / "artifacts").as_uri())


def test_mlflow(small_net, loader, make_trainer, mlflow_logger, tmp_path):
    callback = balance()
    make_trainer([callback], logger=mlflow_logger, max_epochs=3).fit(small_net(), loader)
    client, run_id = mlflow_logger.experiment, mlflow_logger.run_id
    assert client.get_run(run_id).data.metrics.keys() >= KEYS
    rows = dict(zip(callback.history.layers("alpha"), callback.history.rows("alpha"), strict=True))
    history = client.get_metric_history(run_id, "farms/alpha/head")
    assert [metric.value for metric in sorted(history, key=lambda metric: metric.step)] == pytest.approx(rows["head"])
    names = [artifact.path for artifact in client.list_artifacts(run_id, "images") if artifact.path.endswith(".png")]
    drawn = {name.removeprefix("images/").partition("+")[0].replace("~", "/") for name in names}
    assert drawn == FIGURES
    for name in names:
        image = np.asarray(Image.open(client.download_artifacts(run_id, name, str(tmp_path))).convert("RGB"))
        assert len(np.unique(image.reshape(-1, 3), axis=0)) > 50
    text = client.download_artifacts(run_id, "farms/options.md", str(tmp_path))
    assert "### TBSigmoid" in Path(text).read_text(encoding="utf-8")


def test_mlflow_file_store_beside_learning_rate_monitor(small_net, loader, make_trainer, tmp_path, monkeypatch):
    """It keeps a key as a file, and what stands before a slash as a folder."""
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    logger = MLFlowLogger("farms", tracking_uri=(tmp_path / "mlruns").as_uri())
    make_trainer([LearningRateMonitor(), balance()], logger=logger, max_epochs=2, log_every_n_steps=1).fit(
        small_net(), loader
    )
    assert logger.experiment.get_run(logger.run_id).data.metrics.keys() >= KEYS | {"lr-SGD"}


def test_mlflow_takes_the_scalars_of_a_thousand_layers(make_trainer, mlflow_logger):
    scalars = {f"farms/alpha/{i}": float(i) for i in range(1500)}
    log_scalars(make_trainer([], logger=mlflow_logger), scalars, 0)
    assert mlflow_logger.experiment.get_run(mlflow_logger.run_id).data.metrics == scalars


def test_all_loggers_at_once(small_net, loader, make_trainer, mlflow_logger, wandb_run, tmp_path):
    loggers = [WandbLogger(project="farms", save_dir=tmp_path, offline=True), mlflow_logger]
    make_trainer([SpectralMonitor(summary=False)], logger=loggers, max_epochs=1).fit(small_net(), loader)
    _, history = wandb_run()
    assert any("farms/alpha_map_labelled" in items for _, items in history)
    paths = [item.path for item in mlflow_logger.experiment.list_artifacts(mlflow_logger.run_id, "images")]
    assert any("alpha_map_labelled" in path for path in paths)
