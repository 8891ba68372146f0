"""The command line, in process, on 16x16 flows and one-block networks."""

import re
import shutil
import subprocess
import sys
import types
from importlib.metadata import version
from pathlib import Path

import h5py
import pytest
import torch
import yaml
from torch import nn

from lightning_farms.callbacks import SpectralMonitor, TBSigmoid, TempBalance
from lightning_farms.cli import main
from lightning_farms.data import CFDSimulation, SimulationConfig, simulate_to_file, write_pdebench
from lightning_farms.models import DPOT, OperatorModule, save_weights
from tests.cli.train.small_runs import CONFIG, SIZES, checkpoint
from tests.forked import run_forked

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


class Plain(nn.Module):
    """A network of the user's own that knows nothing of sizes."""

    def __init__(self, gain: float = 1.0):
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, x):
        return x[:, :, :, -1:] * self.gain


def test_fit_then_validate_test_and_predict_from_its_checkpoint(run, capsys):
    run("fit")
    assert yaml.safe_load(Path("config.yaml").read_text())["model"]["network"]["init_args"]["embed_dim"] == 8
    path = checkpoint()
    for subcommand in ("validate", "test"):
        run(subcommand, f"--ckpt_path={path}")
    with pytest.warns(UserWarning, match="The checkpoint was trained on 3 of the 4 flows to predict: 0-2 of "):
        run("predict", f"--ckpt_path={path}")
    out = capsys.readouterr().out
    assert all(name in out for name in ("val/l2re", "val/nrmse", "test/l2re", "test/nrmse"))
    module = OperatorModule.load_from_checkpoint(path)
    assert module.network.config["img_size"] == 16
    assert module.network.config["in_timesteps"] == 3


class Relayed(DPOT):
    """A network of the user's own that hands the sizes on."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)


def test_sizes_that_a_network_hands_on_are_the_data_s_too(run, monkeypatch):
    module = types.ModuleType("relayed_networks")
    module.Relayed, Relayed.__module__ = Relayed, "relayed_networks"
    monkeypatch.setitem(sys.modules, "relayed_networks", module)
    run("fit", "--model.network.class_path=relayed_networks.Relayed", "--trainer.fast_dev_run=1")


def test_a_size_that_the_data_do_not_have_is_told(run):
    with pytest.warns(
        UserWarning, match=r"`model.network.in_timesteps` is set to 3, not to 5, as the network takes its sizes"
    ):
        run("fit", "--model.network.in_timesteps=5", "--model.network.img_size=[16,16]", "--trainer.fast_dev_run=1")


@pytest.mark.parametrize(
    ("arguments", "named", "flows"),
    [
        (["--data.val_fraction=0.34"], "test", 1),
        ([], "validation", 1),
        (["--data.test_fraction=0.75", "--data.batch_size=2", "--trainer.limit_val_batches=0.5"], "validation", 2),
        (["--trainer.fast_dev_run=1"], "", 0),
        (["--data.val_fraction=0.34", "--trainer.limit_test_batches=0"], "", 0),
    ],
)
def test_a_fit_ends_with_errors_of_flows_that_did_not_choose_the_checkpoint(
    run, caplog, monkeypatch, arguments, named, flows
):
    tested = []
    original = OperatorModule.on_test_epoch_end
    monkeypatch.setattr(OperatorModule, "on_test_epoch_end", lambda self: (tested.append(self), original(self)))
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        run("fit", *arguments)
    lines = [message for message in caplog.messages if " L2RE " in message]
    assert len(tested) == (named == "test")
    assert len(lines) == bool(named)
    if named:
        number = r"[\d.e+-]+"
        line = rf"{named} L2RE {number} \(persistence {number}, drift-free {number}\), VRMSE {number} on {flows} flows?"
        assert re.fullmatch(line, lines[0])


@pytest.mark.parametrize(
    ("arguments", "kind", "method", "value"),
    [
        (["--trainer.callbacks+=TBSigmoid", "--trainer.callbacks.analysis=FARMS"], TBSigmoid, "FARMS", 1.0),
        (
            [
                "--trainer.callbacks+=TempBalance",
                "--trainer.callbacks.analysis=FARMS",
                "--trainer.callbacks.analysis.aspect_ratio=2.0",
            ],
            TempBalance,
            "FARMS",
            2.0,
        ),
        (["--config=more.yaml"], TBSigmoid, "FARMS", 0.5),
        (["--trainer.callbacks+=SpectralMonitor"], SpectralMonitor, "FARMS", 1.0),
        (
            ["--trainer.callbacks+=TBSigmoid", "--trainer.callbacks.analysis=WholeMatrix"],
            TBSigmoid,
            "WholeMatrix",
            None,
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:.*logger", "ignore:.*these have nearly one learning rate")
def test_callbacks_by_short_name(run, seen, arguments, kind, method, value):
    more = {"class_path": "TBSigmoid", "init_args": {"analysis": {"class_path": "FARMS"}}}
    more["init_args"]["analysis"]["init_args"] = {"aspect_ratio": 0.5}
    Path("more.yaml").write_text(yaml.safe_dump({"trainer": {"callbacks": [more]}}))
    run("fit", *arguments)
    (callback,) = [c for c in seen[0][1].callbacks if isinstance(c, kind)]
    assert type(callback.analysis).__name__ == method
    assert getattr(callback.analysis, "aspect_ratio", None) == value


@pytest.mark.parametrize("resolution", [32, 64])
@pytest.mark.parametrize("stride", [1, 2])
def test_the_networks_size_follows_the_file(run, seen, tmp_path, resolution, stride):
    path = tmp_path / "flow.hdf5"
    fields = dict.fromkeys(("density", "pressure", "vx", "vy"), 1 + torch.rand(4, 5, resolution, resolution))
    centres = (torch.arange(resolution) + 0.5) / resolution
    write_pdebench(
        path, CFDSimulation(**fields, x=centres, y=centres, t=torch.linspace(0, 1, 5), eta=0.1, zeta=0.1, mach=0.1)
    )
    run("fit", f"--data.path={path}", f"--data.stride={stride}", "--trainer.limit_train_batches=1")
    assert seen[0][0].network.config["img_size"] == resolution // stride
    assert seen[0][0].network.config["in_timesteps"] == 3


def test_a_network_of_ones_own(run, seen):
    sys.modules["own_networks"] = sys.modules[__name__]
    Plain.__module__ = "own_networks"
    try:
        run("fit", "--model.network=own_networks.Plain", "--model.network.gain=0.9")
        assert isinstance(OperatorModule.load_from_checkpoint(checkpoint()).network, Plain)
    finally:
        del sys.modules["own_networks"]
    assert isinstance(seen[0][0].network, Plain)
    assert float(seen[0][2]["gain"]) == pytest.approx(0.9)


def test_pretraining_is_kept_used_again_and_undisturbing(run, seen, tmp_path, capsys):
    options = [
        "--pretrain.epochs=2",
        f"--pretrain.cache_dir={tmp_path / 'kept'}",
        "--pretrain.simulation.trajectories=3",
    ]
    options += ["--pretrain.simulation.frames=5"]
    run("fit", *options)
    (kept,) = (tmp_path / "kept").iterdir()
    (_, pre_trainer, _, _), (_, _, first, rng) = seen
    assert pre_trainer.max_epochs == 2
    assert pre_trainer.logger is None
    stored = torch.load(kept, weights_only=False)["model"]
    assert all(torch.equal(first[name], stored[name]) for name in first)

    seen.clear()
    modified = kept.stat().st_mtime_ns
    run("fit", *options)
    assert len(seen) == 1
    assert kept.stat().st_mtime_ns == modified
    assert all(torch.equal(first[name], seen[0][2][name]) for name in first)
    assert torch.equal(rng, seen[0][3])

    seen.clear()
    run("fit", *options, "--seed_everything=7")
    assert len(seen) == 1, "the main run's seed does not enter the pre-training"

    seen.clear()
    run("fit", *options, "--pretrain.lr=0.01")
    assert len(seen) == 2
    assert len(list((tmp_path / "kept").iterdir())) == 2

    seen.clear()
    run("fit")
    assert not torch.equal(seen[0][2]["blocks.0.mlp.0.weight"], first["blocks.0.mlp.0.weight"])
    assert torch.equal(rng, seen[0][3])


def test_starting_checkpoint(run, seen, tmp_path, capsys):
    network = DPOT(img_size=16, in_timesteps=3, **SIZES)
    save_weights(network, tmp_path / "start.pth")
    run("fit", "--pretrain.epochs=5", f"--pretrain.checkpoint={tmp_path / 'start.pth'}")
    assert len(seen) == 1, "a checkpoint wins over pre-training"
    assert all(torch.equal(value, seen[0][2][name]) for name, value in network.state_dict().items())

    lightning_checkpoint = checkpoint().rename("start.ckpt")
    state = torch.load(lightning_checkpoint, weights_only=True)["state_dict"]
    run("fit", f"--pretrain.checkpoint={lightning_checkpoint}")
    assert all(torch.equal(value, state[f"network.{name}"]) for name, value in seen[1][2].items())

    capsys.readouterr()
    run("test", f"--ckpt_path={lightning_checkpoint}")
    by_lightning = capsys.readouterr().out
    run("test", f"--pretrain.checkpoint={lightning_checkpoint}")
    assert capsys.readouterr().out == by_lightning
    assert "test/l2re" in by_lightning


@pytest.mark.filterwarnings("ignore:.*logger")
def test_fast_dev_run_leaves_the_pretraining_out(run, seen, tmp_path):
    options = ["--pretrain.epochs=2", f"--pretrain.cache_dir={tmp_path / 'kept'}"]
    run("fit", "--trainer.fast_dev_run=true", *options)
    assert len(seen) == 1
    assert not (tmp_path / "kept").exists()


def truncated(tmp_path, cache):
    (whole,) = cache.glob("*_16_n4_*.hdf5")
    path = tmp_path / "cut.hdf5"
    path.write_bytes(whole.read_bytes()[:5000])
    return path


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.path=nowhere.hdf5"], "Expected --data.path to be an existing file, but found none at nowhere.hdf5"),
        (["--data.path=cut.hdf5"], "cut.hdf5"),
        (["--pretrain.checkpoint=nowhere.pth"], "nowhere.pth"),
        (["--pretrain.checkpoint=config.in.yaml"], "config.in.yaml"),
        (["--pretrain.checkpoint=other.pth"], "of other shape"),
        (["--pretrain.checkpoint=tiny", "--data.channel_order=pdebench"], "as in the training of tiny, but got"),
        (["--pretrain.epochs=-1"], "Expected --pretrain.epochs to be at least 0"),
        (["--pretrain.epochs=1", "--pretrain.simulation.trajectories=1"], "at least 2"),
        (["--ckpt_path=nowhere.ckpt"], "nowhere.ckpt"),
        (["--ckpt_path=cut.hdf5"], "cut.hdf5 cannot be read as one"),
        (["--ckpt_path=other.pth"], "such as a released DPOT's, are given as `--pretrain.checkpoint`"),
        (["--ckpt_path=plain.pth"], "plain.pth is none"),
        (
            ["--data.path=."],
            "Expected --data.path to be a file, or a folder of HDF5 files (.hdf5, .h5, .hdf), but . has none",
        ),
        (["--model.lr=0"], "Expected --model.lr to be positive and finite, but got 0"),
        (["--model.network.embed_dim=9"], "--model.network.embed_dim"),
        (["--data.test_fraction=0.1"], "`test_fraction` 0.1 of 4 is less than one trajectory. Raise `test_fraction`"),
        (["--data.in_timesteps=6"], "frames"),
        (["--trainer.max_epochs=-1"], "Set the Trainer's `max_epochs`"),
        (["--model.network=torch.nn.Identity", "--pretrain.epochs=1"], "to be a DPOT"),
    ],
)
@pytest.mark.filterwarnings("ignore:.*max_epochs.*not set")
def test_mistakes_end_with_one_message(run, tmp_path, cache, capsys, arguments, message):
    if "cut" in arguments[0]:
        with pytest.warns(UserWarning, match="`validate` uses the weights that the network was built with"):
            run("validate")
        truncated(tmp_path, cache)
    if "other" in arguments[0]:
        save_weights(DPOT(img_size=16, in_timesteps=3, **{**SIZES, "embed_dim": 16}), tmp_path / "other.pth")
    if "plain" in arguments[0]:
        torch.save(DPOT(img_size=16, in_timesteps=3, **SIZES).state_dict(), tmp_path / "plain.pth")
    with pytest.raises(SystemExit) as stop:
        run("fit", *arguments)
    errors = capsys.readouterr().err
    assert stop.value.code == 1
    assert errors.count("lightning-farms: error:") == 1
    assert message in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize("argument", ["--model.lrr=1", "--model.network.depht=3", "--data.simulation.mach=fast"])
def test_unknown_or_malformed_arguments(run, capsys, argument):
    with pytest.raises(SystemExit) as stop:
        run("fit", argument)
    assert stop.value.code == 2
    assert argument.split("=")[0].split(".")[-1] in capsys.readouterr().err


@pytest.mark.parametrize("workers", [0, 1])
def test_not_a_number_in_the_file(run, tmp_path, capsys, workers):
    fields = {name: torch.ones(4, 6, 16, 16) for name in ("density", "pressure", "vx", "vy")}
    fields["vy"][:, 3] = torch.nan
    centres, times = (torch.arange(16) + 0.5) / 16, torch.linspace(0, 1, 6)
    write_pdebench(
        tmp_path / "nan.hdf5", CFDSimulation(**fields, x=centres, y=centres, t=times, eta=0.1, zeta=0.1, mach=0.1)
    )
    with pytest.raises(SystemExit) as stop:
        run("fit", "--data.path=nan.hdf5", f"--data.num_workers={workers}")
    errors = capsys.readouterr().err
    assert stop.value.code == 1
    assert "lightning-farms: error: Expected channel `Vy` of nan.hdf5 to be finite, but trajectory" in errors
    assert "Traceback" not in errors


def test_unknown_callback_names_the_known(run, capsys):
    with pytest.raises(SystemExit) as stop:
        run("fit", "--trainer.callbacks+=TBSigmod")
    errors = capsys.readouterr().err
    assert stop.value.code == 2
    names = (
        "LayerwiseLearningRate, LayerwisePruning, PredictionWriter, RolloutMonitor, SpectralMonitor, TBSigmoid, "
        "TempBalance, WeightDecayBalance"
    )
    assert errors.endswith(f"package: {names}. Lightning's own go by their class names too.\n")


def test_checkpoint_of_another_resolution(run, capsys):
    run("fit")
    with pytest.raises(SystemExit) as stop, pytest.warns(UserWarning, match="`model.network.img_size` is 8, not 16"):
        run("test", f"--ckpt_path={checkpoint()}", "--data.stride=2")
    assert stop.value.code == 1
    assert "network.pos_embed: (1, 8, 4, 4) in the file, (1, 8, 2, 2) in the module" in capsys.readouterr().err


def test_traceback_on_demand(run, monkeypatch):
    monkeypatch.setenv("LIGHTNING_FARMS_TRACEBACK", "1")
    with pytest.raises(ValueError, match="`lr`"):
        run("fit", "--model.lr=0")


def test_faults_of_the_program_keep_their_traceback(run, monkeypatch):
    def fault(self, batch, batch_idx):
        raise KeyError("a fault")

    monkeypatch.setattr(OperatorModule, "training_step", fault)
    with pytest.raises(KeyError, match="a fault"):
        run("fit")


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_examples_parse(run, capsys, example, subcommand):
    with pytest.raises(SystemExit) as stop:
        main([subcommand, f"--config={example}", "--print_config"])
    assert stop.value.code == 0
    config = yaml.safe_load(capsys.readouterr().out)
    classes = [callback["class_path"].split(".") for callback in config["trainer"]["callbacks"]]
    assert ("lightning_farms", "TBSigmoid") in [(path[0], path[-1]) for path in classes]
    assert config["model"]["network"]["class_path"] == "lightning_farms.models.DPOT"


def test_there_are_examples():
    assert {path.stem for path in EXAMPLES} >= {"finetune_dpot_cfd", "finetune_dpot_tiny_128"}


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--help"], "analyze"),
        (["--help"], "fit"),
        (["--version"], f"lightning-farms {version('lightning-farms')}\n"),
        (["fit", "--help"], "--pretrain.checkpoint"),
        (["fit", "--model.network.help=DPOT"], "embed_dim"),
    ],
)
def test_help(run, capsys, arguments, expected):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 0
    assert expected in capsys.readouterr().out


def test_module_is_runnable():
    done = subprocess.run(
        [sys.executable, "-m", "lightning_farms", "--help"], capture_output=True, text=True, check=True
    )
    assert "lightning-farms" in done.stdout
    assert shutil.which("lightning-farms", path=str(Path(sys.executable).parent)), "the console script is installed"


def test_what_is_wrong_with_the_users_file_comes_before_the_pretraining(run, seen, cache, tmp_path, capsys):
    simulate_to_file(tmp_path / "two.hdf5", SimulationConfig(trajectories=2, resolution=16, frames=8), progress=False)
    with pytest.raises(SystemExit, match="1"):
        run("fit", f"--data.path={tmp_path / 'two.hdf5'}", "--pretrain.epochs=1", "--pretrain.seed=77")
    assert "of 2 is less than one trajectory" in capsys.readouterr().err
    assert seen == [], "pre-trained before looking at the file"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"flows": 6, "arguments": ["--data.test_fraction=0.1"]}, "of 6 is less than one trajectory"),
        ({"flows": 8, "arguments": [], "bad": 7}, "trajectory 7 has 1 NaN values in frame 5"),
    ],
)
def test_what_is_wrong_with_the_closing_test_comes_before_the_training(run, seen, tmp_path, capsys, change, message):
    settings = SimulationConfig(trajectories=change["flows"], resolution=16, frames=6)
    simulate_to_file(tmp_path / "flow.hdf5", settings, progress=False)
    if "bad" in change:
        with h5py.File(tmp_path / "flow.hdf5", "a") as file:
            file["Vx"][change["bad"], 5, 0, 0] = float("nan")
    with pytest.raises(SystemExit, match="1"):
        run("fit", "--data.path=flow.hdf5", "--data.val_fraction=0.34", *change["arguments"])
    assert message in capsys.readouterr().err
    assert seen == []


def test_starting_weights_are_evaluated_as_they_were_trained(run, tmp_path, capsys):
    for seed, name in enumerate(("one", "two")):
        settings = SimulationConfig(trajectories=4, resolution=16, frames=6, seed=seed)
        simulate_to_file(tmp_path / f"{name}.hdf5", settings, progress=False)
    run("fit", "--data.path=one.hdf5", "--data.normalize=true")
    start = checkpoint().rename("start.ckpt")
    capsys.readouterr()
    on_other = ("--data.path=two.hdf5", "--data.normalize=true", "--data.test_fraction=1.0")
    run("test", f"--ckpt_path={start}", *on_other)
    expected = capsys.readouterr().out
    run("test", f"--pretrain.checkpoint={start}", *on_other)
    assert capsys.readouterr().out == expected, "scaled as in the training"
    for arguments, message in (
        ((), "--data.normalize to be True, as in the training"),
        (("--data.normalize=true", "--data.channel_order=pdebench"), "the channels to be"),
    ):
        with pytest.raises(SystemExit, match="1"):
            run("test", f"--pretrain.checkpoint={start}", "--data.path=two.hdf5", *arguments)
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit, match="1"):
        run("fit", f"--pretrain.checkpoint={start}", "--data.path=two.hdf5", "--data.channel_order=pdebench")
    assert "the channels to be in the order ['Vx', " in capsys.readouterr().err


def test_an_interrupt_before_the_training_begins_ends_without_a_traceback(run, monkeypatch, capsys):
    def interrupt(self):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_farms.cli.train.command.FarmsCLI.before_fit", interrupt)
    with pytest.raises(SystemExit, match="130"):
        run("fit")
    assert capsys.readouterr().err.endswith("\nlightning-farms: interrupted\n")


def test_the_closing_line_of_a_training_in_child_processes(cache, tmp_path):
    (tmp_path / "in.yaml").write_text(yaml.safe_dump(CONFIG))
    options = ("--data.val_fraction=0.34", "--trainer.strategy=ddp_fork", "--trainer.devices=2")
    folders = (f"--data.cache_dir={cache}", f"--trainer.default_root_dir={tmp_path}")
    command = ("lightning_farms", "fit", f"--config={tmp_path / 'in.yaml'}", *options, *folders)
    run_forked((command, {}), folder=tmp_path)
    said = (tmp_path / "err0.txt").read_text()
    assert re.search(r"^test L2RE \S+ \(persistence \S+, drift-free \S+\), VRMSE \S+$", said, re.MULTILINE), said
