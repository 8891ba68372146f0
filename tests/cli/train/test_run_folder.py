"""Each run has a numbered folder of its own, also if several are started together."""

from pathlib import Path

import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_farms.data import CFDDataModule

LOGGER = "--trainer.logger={}Logger"
REST = ("--trainer.logger.save_dir=runs", "--trainer.log_every_n_steps=1")


@pytest.mark.parametrize("kind", [TensorBoardLogger, CSVLogger])
def test_a_run_has_its_folder_before_its_flows_are_simulated(run, monkeypatch, kind):
    there = []
    original = CFDDataModule.prepare_data

    def prepare(self):
        there.append(sorted(path.name for path in Path("runs/lightning_logs").iterdir()))
        original(self)

    monkeypatch.setattr(CFDDataModule, "prepare_data", prepare)
    options = [LOGGER.format(kind.__name__.removesuffix("Logger")), *REST]
    run("fit", *options)
    run("fit", *options)
    assert there == [["version_0"], ["version_0", "version_1"]]
    assert all(Path(f"runs/lightning_logs/version_{number}/config.yaml").is_file() for number in (0, 1))


def test_a_number_that_another_run_has_just_taken_is_not_taken(run, monkeypatch):
    original = TensorBoardLogger._get_next_version

    def overtaken(self):
        number = original(self)
        if number == 0:
            Path("runs/lightning_logs/version_0").mkdir(parents=True)
        return number

    monkeypatch.setattr(TensorBoardLogger, "_get_next_version", overtaken)
    run("fit", LOGGER.format("TensorBoard"), *REST)
    assert list(Path("runs/lightning_logs/version_0").iterdir()) == []
    assert Path("runs/lightning_logs/version_1/config.yaml").is_file()


def test_a_version_that_is_given_is_kept(run):
    for _ in range(2):
        run("fit", LOGGER.format("TensorBoard"), *REST, "--trainer.logger.version=mine")
    assert [path.name for path in Path("runs/lightning_logs").iterdir()] == ["mine"]
