"""Trainings in two processes on the CPU, one after the other; each rank writes what it saw. Run by the tests."""

import os
import pickle
import sys
import threading
import warnings
from datetime import timedelta
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms.analysis import FARMS, Diagnostics, WholeMatrix
from lightning_farms.analysis._engine import analysis as engine
from lightning_farms.analysis._engine import measure
from lightning_farms.callbacks import (
    Control,
    LayerwiseLearningRate,
    LayerwisePruning,
    SpectralMonitor,
    SqrtMap,
    TBSigmoid,
    TempBalance,
    WeightDecayBalance,
)
from lightning_farms.pruning import Cubic

RANK = int(os.environ.get("LOCAL_RANK", "0"))
PATIENCE = timedelta(seconds=60)  # after which a rank that waits for the other in vain raises
EVERYTHING = Diagnostics(bootstrap=20, marchenko_pastur=True, twin=True)
SIZE, DEPTH = 48, 6
CALLBACKS = {
    "LayerwiseLearningRate": partial(LayerwiseLearningRate, SqrtMap(), every_n_steps=1, control=Control(ema_decay=0.5)),
    "LayerwisePruning": partial(LayerwisePruning, 0.5, schedule=Cubic(0, 1)),
    "SpectralMonitor": partial(SpectralMonitor, WholeMatrix(), diagnostics=EVERYTHING),
    "TBSigmoid": partial(TBSigmoid, workspace=1),
    "TempBalance": partial(TempBalance, overlap=True, esd_layers=2),  # of no effect here, and of no harm
    "WeightDecayBalance": partial(WeightDecayBalance, control=Control(ramp_steps=2)),
}


class Net(pl.LightningModule):
    """Equal layers, so that it is known how many bytes one has."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        layers = [nn.Sequential(nn.Linear(SIZE, SIZE), nn.ReLU()) for _ in range(DEPTH)]
        self.layers = nn.Sequential(*layers, nn.LayerNorm(SIZE), nn.Linear(SIZE, 20))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.layers(x), y)

    def validation_step(self, batch, batch_idx):
        self.log("validation", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)


class ShardedNet(Net):
    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        for layer in self.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(self.layers, mesh=mesh)


class Record(pl.Callback):
    """Which layers this rank measured, what it gathered, and what the callback ended with."""

    def __init__(self, callback):
        self.callback = callback
        self.measured = set()
        self.gathered = []
        self.most_alive = 0
        self.warnings = []
        self.result = {}

    def setup(self, trainer, pl_module, stage):
        self.measure, self.full_tensor = measure.measure, DTensor.full_tensor
        measure.measure = self._measure
        DTensor.full_tensor = lambda tensor: self._full_tensor(tensor)

    def teardown(self, trainer, pl_module, stage):
        measure.measure, DTensor.full_tensor = self.measure, self.full_tensor

    def _measure(self, spectra, plans, *args, **kwargs):
        self.measured.update(plan.weight.name for plan in plans)
        return self.measure(spectra, plans, *args, **kwargs)

    def _full_tensor(self, tensor):
        full = self.full_tensor(tensor)
        if full.ndim == 2:
            self.gathered.append((StorageWeakRef(full.untyped_storage()), full.nbytes))
            self.most_alive = max(self.most_alive, sum(n for storage, n in self.gathered if not storage.expired()))
        return full

    def on_train_end(self, trainer, pl_module):
        parameters = pl_module.named_parameters()
        weights = {name: self.full_tensor(p) if isinstance(p, DTensor) else p for name, p in parameters}
        self.result = {
            "weights": {name: weight.detach().clone() for name, weight in weights.items()},
            "rows": list(self.callback.report),
            "history": self.callback.history.state_dict(),
            "multipliers": getattr(self.callback, "multipliers", {}),
            "measured": self.measured,
            "gathered": len(self.gathered),
            "most_alive": self.most_alive,
            "steps": trainer.global_step,
            "threads": [thread.name for thread in threading.enumerate() if "background" in thread.name],
        }


def fit(folder, name, callback, *extra, model=Net, strategy=None, ckpt_path=None, **settings):
    record = Record(callback)
    generator = torch.Generator().manual_seed(1)
    data = TensorDataset(torch.randn(16, SIZE, generator=generator), torch.randn(16, 20, generator=generator))
    trainer = pl.Trainer(
        **{
            "max_epochs": 2,
            "accelerator": "cpu",
            "devices": 2,
            "strategy": strategy or DDPStrategy(process_group_backend="gloo", timeout=PATIENCE),
            "callbacks": [callback, record, *extra],
            "logger": CSVLogger(folder, name=name, version=0),
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": bool(extra),
            "log_every_n_steps": 1,
            **settings,
        }
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer.fit(model(), DataLoader(data, batch_size=4), DataLoader(data, batch_size=8), ckpt_path=ckpt_path)
    record.result["warnings"] = [str(warning.message) for warning in caught]
    with (folder / f"{name}-rank{RANK}.pkl").open("wb") as file:
        pickle.dump(record.result, file)


def broken(folder):
    """The decomposition raises on rank one."""

    def fails(*args, **kwargs):
        raise RuntimeError("out of memory")

    decompose = engine.decompose
    engine.decompose = fails if RANK == 1 else decompose
    fit(folder, "broken", TempBalance(summary=False))
    engine.decompose = decompose


def figures(folder):
    """Figures are a matter of rank zero, the spectra in them of all ranks."""
    often = {"figures_every_n_epochs": 1, "esd_layers": 2, "summary": False}
    everywhere = TensorBoardLogger(folder, name="everywhere", version=0)
    fit(folder, "logger everywhere", SpectralMonitor(**often), logger=everywhere)
    for rank in (0, 1):
        logger = TensorBoardLogger(folder, name=f"tensorboard{rank}", version=0) if rank == RANK else False
        fit(folder, f"logger on rank {rank}", TBSigmoid(**often), logger=logger)
    fit(folder, "fast_dev_run", TBSigmoid(**often), fast_dev_run=True)


def sharded(folder):
    """FSDP2: every parameter is split over the ranks."""

    def strategy():
        return ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, process_group_backend="gloo")

    fit_sharded = partial(fit, folder, model=ShardedNet)
    options = {"diagnostics": EVERYTHING, "workspace": 1, "figures_every_n_epochs": 1, "esd_layers": 2}
    monitor = SpectralMonitor(FARMS(), summary=False, **options)
    logger = TensorBoardLogger(folder, name="sharded", version=0)
    save = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    fit_sharded("sharded", monitor, save, strategy=strategy(), logger=logger)
    resumed = SpectralMonitor(FARMS(), summary=False, **options)
    fit_sharded("resumed", resumed, save, strategy=strategy(), logger=logger, ckpt_path=folder / "epoch=0.ckpt")


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    for name, make in CALLBACKS.items():
        fit(folder, name, make())
    broken(folder)
    figures(folder)
    sharded(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
