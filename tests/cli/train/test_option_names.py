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


@pytest.mark.parametrize(
    ("option", "wanted"),
    [
        ("--data.batch_size=x", ["Expected an integer. Got value: x"]),
        ("--data.noise=x", ["Expected a number. Got value: x"]),
        ("--data.normalize=x", ["Expected true or false. Got value: x"]),
        ("--data.split=x", ["Expected one of 'dpot', 'pdebench'. Got value: x"]),
        ("--data.predict_frames=x", ["Expected an integer\n", "Expected null\n", "Given value type: text\n"]),
        ("--model.network.depth=x", ["Expected an integer. Got value: x"]),
        ("--freeze=*.bias", ["Expected a list. Got value: *.bias\n", "as in `--freeze+='network.blocks.*'`"]),
    ],
)
def test_types_are_told_in_words(run, capsys, option, wanted):
    with pytest.raises(SystemExit, match="2"):
        run("fit", option)
    err = capsys.readouterr().err
    assert all(words in err for words in wanted)
    assert "<class" not in err
