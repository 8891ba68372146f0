"""Every option from a YAML file, through LightningCLI."""

import re

import pytest
import yaml
from lightning.pytorch import LightningDataModule
from lightning.pytorch.cli import LightningCLI

from lightning_farms import (
    FARMS,
    Control,
    LayerwiseLearningRate,
    LinearMap,
    SpectralMonitor,
    StepMap,
    TBSigmoid,
    TempBalance,
    WeightDecayBalance,
    WholeMatrix,
)
from lightning_farms.analysis import WORKSPACE, Diagnostics, Selection
from lightning_farms.pruning import Cubic
from tests.callbacks.conftest import SmallNet

TRAINER = {
    "accelerator": "cpu",
    "devices": 1,
    "max_epochs": 1,
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
}
NESTED = {
    "every_n_epochs": 2,
    "selection": {"exclude": ["conv", "head"], "kinds": ["linear", "convolution"], "min_size": 4},
    "diagnostics": {"twin": True, "bootstrap": 5, "level": 0.9},
    "workspace": 1000000,
    "overlap": True,
}


class Unused(LightningDataModule):
    """LightningCLI asks for one."""


@pytest.fixture
def callbacks_of(tmp_path, monkeypatch):
    """The callbacks that a list in a YAML file makes."""
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI's own, with jsonargparse 4.53
    monkeypatch.setattr("sys.argv", ["train"])

    def build(*callbacks):
        path = tmp_path / "config.yaml"
        path.write_text(yaml.safe_dump({"trainer": {**TRAINER, "callbacks": list(callbacks)}}))
        options = {"run": False, "save_config_callback": None, "seed_everything_default": False}
        cli = LightningCLI(SmallNet, Unused, args=[f"--config={path}"], **options)
        return cli, [c for c in cli.trainer.callbacks if isinstance(c, SpectralMonitor)]

    return build


@pytest.mark.parametrize("kind", [SpectralMonitor, TBSigmoid, TempBalance])
def test_options_from_yaml(kind, callbacks_of):
    options = {**NESTED, "analysis": {"class_path": "lightning_farms.WholeMatrix", "init_args": {"fit": "ks"}}}
    _, (callback,) = callbacks_of({"class_path": f"lightning_farms.{kind.__name__}", "init_args": options})
    assert type(callback) is kind
    assert callback.analysis == WholeMatrix(fit="ks")
    assert callback.selection == Selection(exclude=("conv", "head"), kinds=("linear", "convolution"), min_size=4)
    assert callback.diagnostics == Diagnostics(5, twin=True, level=0.9)
    assert (callback.every_n_epochs, callback.workspace, callback.overlap) == (2, 1000000, True)
    in_python = kind(analysis=callback.analysis, selection=callback.selection, diagnostics=callback.diagnostics)
    assert callback.state_key == in_python.state_key


def test_pruning_from_yaml(callbacks_of):
    allocation = {
        "method": {"class_path": "lightning_farms.FARMS", "init_args": {"fit": "ks", "window": None}},
        "epsilon": 0.3,
    }
    options = {
        "sparsity": 0.8,
        "allocation": {"class_path": "lightning_farms.pruning.FARMSAllocation", "init_args": allocation},
        "schedule": {"class_path": "Cubic", "init_args": {"start_epoch": 1, "end_epoch": 4}},
        "layers": {"exclude": ["head"]},
    }
    _, (callback,) = callbacks_of(
        {"class_path": "lightning_farms.LayerwisePruning", "init_args": {**NESTED, **options}}
    )
    assert callback.sparsity == 0.8
    assert callback.analysis == callback.allocation.method == FARMS(fit="ks")
    assert callback.allocation.epsilon == 0.3
    assert callback.schedule == Cubic(1, 4)
    assert callback.layers == Selection(exclude=("head",))
    _, (keeping,) = callbacks_of({"class_path": "lightning_farms.LayerwisePruning", "init_args": {"sparsity": None}})
    assert keeping.sparsity is None
    assert keeping.analysis == FARMS()


CONTROL = {
    "ema_decay": 0.5,
    "ramp_steps": 10,
    "max_multiplier": 2.0,
    "first_layer": False,
    "layers": {"exclude": ["head"], "min_size": 4},
    "norms": False,
}


@pytest.mark.parametrize("kind", [LayerwiseLearningRate, TBSigmoid, TempBalance, WeightDecayBalance])
def test_control_and_map_from_yaml(kind, callbacks_of):
    options = {"control": CONTROL, "every_n_steps": 20, "start_epoch": 2}
    if kind in (LayerwiseLearningRate, WeightDecayBalance):
        options["alpha_map"] = {"class_path": "lightning_farms.StepMap", "init_args": {"max_ratio": 3.0}}
    _, (callback,) = callbacks_of({"class_path": f"lightning_farms.{kind.__name__}", "init_args": options})
    layers = Selection(exclude=("head",), min_size=4)
    rest = {"ema_decay": 0.5, "ramp_steps": 10, "max_multiplier": 2.0, "first_layer": False, "norms": False}
    assert callback.control == Control(layers=layers, **rest)
    assert (callback.every_n_steps, callback.start_epoch) == (20, 2)
    if "alpha_map" in options:
        assert callback.alpha_map == StepMap(0.5, 3.0)


def test_the_published_decay_map_is_the_default(callbacks_of):
    _, (callback,) = callbacks_of({"class_path": "lightning_farms.WeightDecayBalance"})
    assert callback.alpha_map == LinearMap(2 / 3, 3.0)
    assert callback.control == Control()


def test_what_yaml_leaves_out_is_as_in_python(callbacks_of):
    _, (callback,) = callbacks_of({"class_path": "lightning_farms.SpectralMonitor"})
    assert (callback.analysis, callback.selection, callback.diagnostics) == (FARMS(), Selection(), Diagnostics())
    assert (callback.workspace, callback.overlap) == (WORKSPACE, False)
    assert callback.state_key == SpectralMonitor().state_key


@pytest.mark.filterwarnings("ignore:.*no logger to write to")
def test_a_configured_run(callbacks_of, loader):
    options = {"selection": {"exclude": ["head"]}, "diagnostics": {"twin": True}, "summary": False}
    cli, (callback,) = callbacks_of({"class_path": "lightning_farms.TempBalance", "init_args": options})
    cli.trainer.fit(cli.model, loader)
    assert callback.multipliers["head"] == 1.0
    assert callback.report["conv"].relative_alpha > 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"selection": {"exlude": ["head"]}}, "exlude"),
        ({"selection": {"kinds": ["lineer"]}}, "`kinds` to be one of linear, .* but got 'lineer'"),
        ({"diagnostics": {"bootstrap": -1}}, "`bootstrap` to be 0 or more, but got -1"),
        ({"overlap": "perhaps"}, "overlap"),
        ({"control": {"emma": 0.5}}, "emma"),
        ({"control": {"ema_decay": 1.5}}, r"`ema_decay` to be in \[0, 1\), but got 1.5"),
    ],
)
def test_mistakes_are_named(options, message, callbacks_of, capsys):
    """By the parser, which ends the program, or by the class."""
    kind = "TempBalance" if "control" in options else "SpectralMonitor"
    with pytest.raises((SystemExit, ValueError)) as raised:
        callbacks_of({"class_path": f"lightning_farms.{kind}", "init_args": options})
    assert re.search(message, capsys.readouterr().err + str(raised.value))


@pytest.mark.parametrize(("kind", "name"), [(TBSigmoid, "s_low"), (TempBalance, "lr_min_ratio")])
def test_an_analysis_in_the_place_of_a_number_is_told_so(kind, name):
    with pytest.raises(TypeError, match=rf"Expected argument `{name}` to be a number, but got FARMS.* by their names"):
        kind(FARMS())
