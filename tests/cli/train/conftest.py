"""Runs of the command line in process."""

import sys

import pytest
import torch
import yaml

from lightning_farms.cli import main
from lightning_farms.models import OperatorModule
from tests.cli.train.small_runs import CONFIG


@pytest.fixture(scope="session")
def cache(tmp_path_factory):
    """Simulated sets, shared by the tests of this file."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def run(tmp_path, cache, monkeypatch):
    """Write the configuration and run a subcommand in an empty folder; what it trained is kept on the function."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["lightning-farms"])
    monkeypatch.setenv("JSONARGPARSE_DEPRECATION_WARNINGS", "off")  # LightningCLI's own, with jsonargparse 4.53
    monkeypatch.delenv("LIGHTNING_FARMS_TRACEBACK", raising=False)
    (tmp_path / "config.in.yaml").write_text(yaml.safe_dump(CONFIG))

    def call(subcommand, *arguments):
        main([subcommand, "--config=config.in.yaml", f"--data.cache_dir={cache}", *arguments])

    return call


@pytest.fixture
def seen(monkeypatch):
    """Modules and trainers at the start of every fit, and the weights they start from."""
    records = []
    original = OperatorModule.on_train_start

    def record(self):
        weights = {name: value.clone() for name, value in self.network.state_dict().items()}
        records.append((self, self.trainer, weights, torch.get_rng_state()))
        original(self)

    monkeypatch.setattr(OperatorModule, "on_train_start", record)
    return records
