"""Evaluation and prediction in two processes on the CPU; each rank writes what it saw. Run by the tests."""

import os
import pickle
import sys
import warnings
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy
from torch.utils.data import DataLoader, DistributedSampler

from lightning_farms.callbacks import PredictionWriter, RolloutMonitor
from lightning_farms.models import OperatorModule
from tests.callbacks.rollouts import Operator, flows, loader
from tests.callbacks.two_processes import PATIENCE

RANK = int(os.environ.get("LOCAL_RANK", "0"))
CALLBACKS = {"PredictionWriter": PredictionWriter, "RolloutMonitor": partial(RolloutMonitor, 1, samples=2, frames=1)}
COUNT = 5  # trajectories: one process has two and one that the other has too, or none


def make_trainer(callback, **settings):
    return pl.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 2,
            "strategy": DDPStrategy(process_group_backend="gloo", timeout=PATIENCE),
            "callbacks": [callback],
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "log_every_n_steps": 1,
            **settings,
        }
    )


def monitored(folder):
    monitor = CALLBACKS["RolloutMonitor"]()
    trainer = make_trainer(monitor, logger=TensorBoardLogger(folder, name="tb", version=0))
    trainer.fit(Operator(), loader(4), loader(COUNT))
    fitted = {"val": monitor.errors, "state": monitor.state_dict(), "metrics": dict(trainer.callback_metrics)}
    trainer.test(Operator(), loader(COUNT), verbose=False)
    single = CALLBACKS["RolloutMonitor"]()  # fewer trajectories than processes
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the loader of fewer trajectories than processes
        make_trainer(single).validate(Operator(), loader(1), verbose=False)
    return {**fitted, "test": monitor.errors, "single": single.errors}


def predicted(folder):
    writer = CALLBACKS["PredictionWriter"](folder / "two.hdf5")
    make_trainer(writer).predict(Operator(), loader(COUNT), return_predictions=False)
    data = flows(COUNT)
    sampler = DistributedSampler(data, num_replicas=2, rank=RANK, shuffle=False)  # which repeats a trajectory
    repeating = DataLoader(data, 2, sampler=sampler)
    again = CALLBACKS["PredictionWriter"](folder / "repeating.hdf5")
    make_trainer(again, use_distributed_sampler=False).predict(Operator(), repeating, return_predictions=False)
    try:
        make_trainer(PredictionWriter(folder / "two.hdf5")).predict(Operator(), loader(COUNT))
    except FileExistsError as error:
        return {"written": str(writer.written), "refused": str(error)}
    return {"written": str(writer.written)}


class Last(torch.nn.Module):
    """Predicts the last given frame again."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.weight * x[:, :, :, -1:]


def operator_errors():
    """What OperatorModule logs of as many trajectories as the processes do not share evenly."""
    trainer = make_trainer(pl.Callback())
    trainer.validate(OperatorModule(Last()), loader(COUNT), verbose=False)
    val = dict(trainer.callback_metrics)
    trainer.test(OperatorModule(Last()), loader(COUNT), verbose=False)
    return {"operator": val | dict(trainer.callback_metrics)}


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    result = {**monitored(folder), **predicted(folder), **operator_errors()}
    with (folder / f"rank{RANK}.pkl").open("wb") as file:
        pickle.dump(result, file)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
