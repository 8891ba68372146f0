"""Trainings in child processes of the one that made the callbacks; what that one can read afterwards. Run by tests."""

import pickle
import sys
import tempfile
import warnings
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms import FARMS, LayerwisePruning, PredictionWriter, RolloutMonitor, SpectralMonitor, TBSigmoid
from lightning_farms.analysis import Diagnostics
from tests.callbacks.rollouts import Operator, loader


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 16))

    def training_step(self, batch, batch_idx):
        return self.layers(batch[0]).square().mean()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def make_trainer(strategy, callbacks, **settings):
    """All processes see the same data, so that their number makes no difference."""
    return pl.Trainer(
        accelerator="cpu",
        devices=1 if strategy == "auto" else 2,
        strategy=strategy,
        callbacks=callbacks,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        use_distributed_sampler=False,
        **settings,
    )


def make_callbacks():
    return [
        SpectralMonitor(FARMS(), diagnostics=Diagnostics(twin=True), summary=False),
        TBSigmoid(every_n_epochs=2, summary=False),
        LayerwisePruning(0.5, summary=False),
    ]


def seen(callbacks):
    """Everything that a user reads."""
    _, balance, pruning = callbacks
    return {
        "reports": [list(callback.report or ()) for callback in callbacks],
        "histories": [callback.history.state_dict() for callback in callbacks],
        "states": [callback.state_dict() for callback in callbacks],
        "multipliers": balance.multipliers,
        "ratios": pruning.ratios.to_json(),
        "masks": pruning.masks.state_dict(),
    }


def trained(strategy, folder):
    data = DataLoader(TensorDataset(torch.randn(16, 24, generator=torch.Generator().manual_seed(1))), batch_size=4)
    callbacks = make_callbacks()
    saver = ModelCheckpoint(folder, filename="last")
    make_trainer(strategy, [*callbacks, saver], max_epochs=2).fit(Net(), data)
    files = list(Path(tempfile.gettempdir()).glob("lightning_farms-*"))
    modes = {oct(file.stat().st_mode & 0o777) for file in files}
    first = seen(callbacks)
    again = make_trainer(strategy, [*callbacks, ModelCheckpoint(folder / "more", filename="last")], max_epochs=3)
    again.fit(Net(), data, ckpt_path=folder / "last.ckpt")
    unread = make_callbacks()
    make_trainer(strategy, unread, max_epochs=1, enable_checkpointing=False).fit(Net(), data)
    return {"first": first, "second": seen(callbacks), "files": len(files), "modes": modes}


def predicted(strategy, folder):
    monitor, writer = RolloutMonitor(1), PredictionWriter(folder / "predicted.hdf5")
    make_trainer(strategy, [monitor]).test(Operator(), loader(4), verbose=False)
    make_trainer(strategy, [writer]).predict(Operator(), loader(4), return_predictions=False)
    return {"errors": monitor.errors, "written": writer.written.name}


def main(strategy, folder):
    warnings.simplefilter("ignore")
    results = {"trained": trained(strategy, folder)}
    if strategy != "ddp_spawn":
        results["predicted"] = predicted(strategy, folder)
    (folder / "results.pkl").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
