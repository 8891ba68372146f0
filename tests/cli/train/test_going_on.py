"""Trainings that go on from a checkpoint, and evaluations of one."""

import re
import shutil
import warnings

import pytest
import torch

from lightning_farms.models import DPOT, save_weights
from tests.cli.train.small_runs import SIZES, checkpoint


@pytest.mark.parametrize(
    ("subcommand", "name"), [("test", "last"), ("validate", "last"), ("predict", "last"), ("test", "best")]
)
def test_a_checkpoint_by_name_that_is_not_there_is_no_reason_to_evaluate_random_weights(run, capsys, subcommand, name):
    with pytest.raises(SystemExit, match="1"):
        run(subcommand, f"--ckpt_path={name}")
    assert re.search(rf"got '{name}'|'{name}' finds none.* random weights", capsys.readouterr().err)


def test_the_last_checkpoint_where_there_is_one_and_where_there_is_none(run, seen, tmp_path):
    network = DPOT(img_size=16, in_timesteps=3, **SIZES)
    save_weights(network, tmp_path / "start.pth")
    options = [
        f"--pretrain.checkpoint={tmp_path / 'start.pth'}",
        "--ckpt_path=last",
        "--model.scheduler=none",
        "--trainer.callbacks=ModelCheckpoint",
        "--trainer.callbacks.save_last=true",
    ]
    with pytest.warns(UserWarning, match="`--ckpt_path last` finds no checkpoint: .*starts anew"):
        run("fit", *options)
    assert all(torch.equal(value, seen[0][2][name]) for name, value in network.state_dict().items())
    run("fit", *options, "--trainer.max_epochs=2")
    state = torch.load("checkpoints/last.ckpt", weights_only=True)
    assert state["epoch"] == 1
    assert not torch.equal(seen[1][2]["pos_embed"], network.pos_embed)


def test_a_freezing_that_is_forgotten_where_a_training_goes_on_is_told(run):
    run("fit", "--freeze=[network.blocks.*]", "--model.scheduler=none")
    frozen = shutil.copy(checkpoint(), "frozen.ckpt")
    options = [f"--ckpt_path={frozen}", "--model.scheduler=none", "--trainer.max_epochs=2"]
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*freeze")
        run("fit", *options, "--freeze=[network.blocks.*]")
    with pytest.warns(UserWarning, match=r"trained with `--freeze \['network.blocks.\*'\]`, but .* goes on with \[\]"):
        run("fit", *options)


def test_a_setting_that_the_checkpoint_overrides_is_told(run):
    run("fit", "--model.scheduler=none", "--model.lr=0.002")
    options = [f"--ckpt_path={shutil.copy(checkpoint(), 'run.ckpt')}", "--trainer.max_epochs=2"]
    with pytest.warns(UserWarning, match=r"`model.lr` is 0.002, as in the training of the checkpoint, not 0.01"):
        run("fit", *options, "--model.lr=0.01")
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The checkpoint's")
        run("test", options[0])


@pytest.mark.parametrize("subcommand", ["fit", "test"])
def test_weights_that_are_given_twice_are_those_of_the_checkpoint(run, seen, caplog, subcommand):
    run("fit", "--trainer.max_epochs=1", "--model.scheduler=none")
    trained = shutil.copy(checkpoint(), "trained.ckpt")
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        run(subcommand, f"--ckpt_path={trained}", "--pretrain.checkpoint=other.pth", "--model.scheduler=none")
    told = [line for line in caplog.messages if "--pretrain.checkpoint` is not used" in line]
    assert told == [f"The weights are those of `--ckpt_path`, {trained}; `--pretrain.checkpoint` is not used."]


def test_a_resumed_training_is_not_pretrained(run, seen):
    run("fit", "--trainer.max_epochs=1", "--model.scheduler=none")
    state = torch.load(checkpoint(), weights_only=True)["state_dict"]
    run("fit", f"--ckpt_path={checkpoint()}", "--trainer.max_epochs=2", "--model.scheduler=none", "--pretrain.epochs=3")
    assert len(seen) == 2
    assert all(torch.equal(value, state[f"network.{name}"]) for name, value in seen[1][2].items())
