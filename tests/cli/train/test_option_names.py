"""Messages about arguments of callbacks and named classes name the options that a user types, and say nothing else."""

import sys

import pytest

from lightning_farms.cli import main


def message(capsys, *arguments):
    with pytest.raises(SystemExit) as ended:
        main(["fit", *arguments])
    assert ended.value.code == 1
    return capsys.readouterr().err


def test_a_callback(run, capsys):
    with pytest.raises(SystemExit) as ended:
        run("fit", "--trainer.callbacks+=LayerwisePruning", "--trainer.callbacks.sparsity=3")
    assert ended.value.code == 1
    err = capsys.readouterr().err
    assert "lightning-farms: error: Expected --trainer.callbacks.sparsity to be in [0, 1), but got 3.0.\n" in err
    assert "Union" not in err


def test_named_classes(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-farms"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")
    network = ("--model=ImageClassifier", "--model.network=lightning_farms.models.resnet18")
    err = message(capsys, *network, "--data=DigitsDataModule", "--data.batch_size=0")
    assert "lightning-farms: error: Expected --data.batch_size to be at least 1, but got 0.\n" in err
    (tmp_path / "run.yaml").write_text("data:\n  class_path: DigitsDataModule\n  init_args:\n    batch_size: 0\n")
    assert "Expected --data.batch_size to be at least 1, but got 0.\n" in message(
        capsys, *network, "--config", "run.yaml"
    )
