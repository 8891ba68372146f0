"""Models and data named by their classes on the command line: image classifiers, beside the operator's own job."""

import sys
from pathlib import Path

import pytest
import yaml

from lightning_farms import FARMS, TempBalance
from lightning_farms.cli import main
from lightning_farms.cli.train._classes import classes_are_named
from lightning_farms.models import ImageClassifier, ResNet

FOLDER = Path(__file__).parents[3] / "examples" / "image_classification"
EXAMPLES = sorted(FOLDER.glob("*.yaml"))
# Table 13 of the paper, "Ours (no LS)": parameters of the network, initial rate, scaling ratio
TABLE_13 = {
    "resnet18": (0.1, 0.1, 1.9),
    "resnet34": (0.1, 0.2, 1.8),
    "vgg16": (0.05, 0.2, 1.8),
    "vgg19": (0.05, 0.2, 1.8),
}
QUICK = [
    "--trainer.accelerator=cpu", "--trainer.max_epochs=1", "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=1", "--trainer.limit_test_batches=1", "--trainer.logger=false",
    "--trainer.enable_model_summary=false", "--trainer.num_sanity_val_steps=0",
]  # fmt: skip


@pytest.fixture
def run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-farms"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI's own, with jsonargparse 4.53
    monkeypatch.delenv("LIGHTNING_FARMS_TRACEBACK", raising=False)
    return lambda *arguments: main(list(arguments))


@pytest.fixture
def seen(monkeypatch):
    """Trainers at the start of every fit."""
    records = []
    monkeypatch.setattr(ImageClassifier, "on_train_start", lambda self: records.append(self.trainer))
    return records


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_examples_parse_with_the_papers_settings(run, capsys, example):
    with pytest.raises(SystemExit) as stop:
        run("fit", f"--config={example}", "--print_config")
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    model, data, callbacks = (config["model"], config["data"], config["trainer"]["callbacks"])
    assert model["class_path"] == "lightning_farms.models.ImageClassifier"
    (balance,) = [c["init_args"] for c in callbacks if c["class_path"].endswith(".TempBalance")]
    assert balance["analysis"]["class_path"] == "lightning_farms.FARMS"
    assert balance["analysis"]["init_args"]["compat"] is None
    assert balance["analysis"]["init_args"]["aspect_ratio"] == 1.0
    arguments = model["init_args"]
    assert (arguments["momentum"], arguments["weight_decay"], arguments["scheduler"]) == (0.9, 5e-4, "cosine")
    if data["class_path"].endswith("CIFARDataModule"):
        name = example.stem.partition("_")[0]
        assert arguments["network"]["class_path"] == f"lightning_farms.models.{name}"
        assert (arguments["lr"], balance["lr_min_ratio"], balance["lr_max_ratio"]) == TABLE_13[name]
        assert (config["trainer"]["max_epochs"], config["seed_everything"]) == (200, 43)
        assert (data["init_args"]["batch_size"], data["init_args"]["classes"]) == (128, 100)


def test_there_is_an_example_of_each_model():
    assert {path.stem for path in EXAMPLES} >= {*(f"{name}_cifar100" for name in TABLE_13), "resnet18_digits"}


@pytest.mark.filterwarnings("ignore:TempBalance has no logger")
def test_fit_on_digits_then_test_from_its_checkpoint(run, seen, capsys):
    run("fit", f"--config={FOLDER / 'resnet18_digits.yaml'}", *QUICK)
    (trainer,) = seen
    assert isinstance(trainer.lightning_module.network, ResNet)
    assert trainer.lightning_module.network.fc.out_features == 10
    (balance,) = [callback for callback in trainer.callbacks if isinstance(callback, TempBalance)]
    assert balance.analysis == FARMS()
    assert len(set(balance.multipliers.values())) > 10
    path = Path("checkpoints") / "last.ckpt"
    run("test", f"--config={FOLDER / 'resnet18_digits.yaml'}", f"--ckpt_path={path}", *QUICK)
    assert "test/accuracy" in capsys.readouterr().out
    restored = ImageClassifier.load_from_checkpoint(path)
    assert restored.network.fc.out_features == 10
    assert yaml.safe_load(Path("config.yaml").read_text())["model"]["init_args"]["lr"] == 0.1


def test_classes_on_the_command_line(run, seen):
    run(
        "fit", "--model=ImageClassifier", "--model.network=ResNet", "--model.network.blocks=[1,1,1,1]",
        "--model.network.width=4", "--data=DigitsDataModule", "--data.size=8", *QUICK,
        "--trainer.enable_checkpointing=false",
    )  # fmt: skip
    network = seen[0].lightning_module.network
    assert network.fc.out_features == 10, "the number of classes follows the data"


def test_pretraining_is_for_operators(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run("fit", f"--config={FOLDER / 'resnet18_digits.yaml'}", "--pretrain.epochs=1", *QUICK)
    assert stop.value.code == 1
    assert "to be a DPOT, and `data` a CFDDataModule, when `pretrain` is used" in capsys.readouterr().err


def test_a_missing_archive_is_one_message(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run("fit", f"--config={FOLDER / 'vgg16_cifar100.yaml'}", "--data.path=nowhere", *QUICK)
    assert stop.value.code == 1
    assert "but there is no nowhere" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "config", "expected"),
    [
        (["fit"], None, False),
        (["fit", "--config=c.yaml"], {"model": {"lr": 1.0}, "data": {"batch_size": 8}}, False),
        (["fit", "-c", "c.yaml"], {"model": {"class_path": "ImageClassifier"}}, True),
        (["fit", "--config", "c.yaml"], {"data": {"class_path": "DigitsDataModule"}}, True),
        (["fit", "--config", "c.yaml"], {"model": "ImageClassifier"}, True),
        (["fit", "--model", "ImageClassifier"], None, True),
        (["fit", "--data=DigitsDataModule"], None, True),
        (["fit", "--model.network=DPOT", "--data.path=x"], None, False),
        (["fit", "--config", "missing.yaml"], None, False),
        (["fit", "--config"], None, False),
        (["fit", "--config=c.yaml"], [1], False),
        (["fit", "--model.class_path=ImageClassifier"], None, True),
        (["fit", "--data.help", "DigitsDataModule"], None, True),
        (["fit", "--model=c.yaml"], {"lr": 1.0}, False),
        (["fit", "--model", "c.yaml"], {"class_path": "ImageClassifier"}, True),
        (["fit", "--config=c.yaml"], {"model": "c.yaml"}, False),
    ],
)
def test_whether_classes_are_named(tmp_path, monkeypatch, arguments, config, expected):
    monkeypatch.chdir(tmp_path)
    if config is not None:
        Path("c.yaml").write_text(yaml.safe_dump(config))
    assert classes_are_named(arguments) is expected


def test_settings_of_the_operators_own_module_in_a_file(run, tmp_path, capsys):
    (tmp_path / "model.yaml").write_text("lr: 0.25")
    config = FOLDER.parent / "finetune_dpot_cfd.yaml"
    with pytest.raises(SystemExit, match="0"):
        run("fit", f"--config={config}", "--model=model.yaml", "--print_config")
    assert yaml.safe_load(capsys.readouterr().out)["model"]["lr"] == 0.25


DIGITS = f"--config={FOLDER / 'resnet18_digits.yaml'}"


@pytest.mark.parametrize(
    ("arguments", "known"),
    [
        (["--model=ImageClasifier"], "Models of this package: ImageClassifier, OperatorModule. Others are named"),
        ([DIGITS, "--data=CIFAR"], "modules of this package: CFDDataModule, CIFARDataModule, DigitsDataModule. Others"),
        ([DIGITS, "--model.network=resnet18"], "DPOT, VGG, ResNet. Others are named by their import path, such as "),
        (["--model.network=DPOTT"], "DPOT, VGG, ResNet. Others are named by their import path, such as lightning_"),
        ([DIGITS, "--trainer.callbacks+=TB"], "TempBalance, WeightDecayBalance. Lightning's own go by their class"),
    ],
)
def test_an_unknown_name_is_answered_with_the_known(run, capsys, arguments, known):
    with pytest.raises(SystemExit, match="2"):
        run("fit", *arguments)
    assert known in capsys.readouterr().err


@pytest.mark.parametrize("argument", ["--data.sise=3", "--model.lr=fast"])
def test_other_mistakes_are_not(run, capsys, argument):
    with pytest.raises(SystemExit, match="2"):
        run("fit", DIGITS, argument)
    assert "of this package:" not in capsys.readouterr().err


def test_broken_yaml_is_left_to_the_parser_of_all_options(tmp_path):
    (tmp_path / "c.yaml").write_text("model: [")
    assert not classes_are_named(["fit", f"--config={tmp_path / 'c.yaml'}"])
