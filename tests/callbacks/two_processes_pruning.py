"""Pruning in two processes on the CPU, under every strategy; each rank writes what it saw. Run by the tests."""

import pickle
import sys
from functools import partial
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms.callbacks import LayerwisePruning, TBSigmoid
from lightning_farms.pruning import Cubic, OneShot
from tests.callbacks.two_processes import RANK
from tests.callbacks.two_processes_strategies import ddp, full_weights, model_parallel

EPOCHS, SPARSITY = 4, 0.7


class Net(pl.LightningModule):
    """Layers whose rows do not divide among two, and one with a complex weight in pairs."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Sequential(nn.Conv1d(3, 9, 4), nn.Flatten(), nn.Tanh()),
            nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 9)),
            nn.LayerNorm(9),
            nn.Linear(9, 5),
        )

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.body(x), y)

    def validation_step(self, batch, batch_idx):
        self.log("validation", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1)


class FSDP2Net(Net):
    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        for module in (self.body[0], self.body[1], self.body):
            fully_shard(module, mesh=mesh)


class TensorParallelNet(Net):
    def configure_model(self):
        plan = {"body.1.0": ColwiseParallel(), "body.1.2": RowwiseParallel()}
        parallelize_module(self, self.device_mesh["tensor_parallel"], plan)


SCENARIOS = {
    "DDP": (Net, ddp),
    "FSDP2": (FSDP2Net, partial(model_parallel, 2, 1)),
    "tensor parallel": (TensorParallelNet, partial(model_parallel, 1, 2)),
}


class Acting(pl.Callback):
    """Zeros among the weights that forward passes use: the gathered ones, after hooks of FSDP2."""

    def __init__(self):
        self.zeros = {}

    def on_train_start(self, trainer, pl_module):
        weighted = {name: m for name, m in pl_module.named_modules() if isinstance(m, (nn.Linear, nn.Conv1d))}
        for name, module in weighted.items():
            module.register_forward_pre_hook(partial(self.count, trainer, name))

    def count(self, trainer, name, module, args):
        if trainer.training:
            weight = module.weight.full_tensor() if hasattr(module.weight, "full_tensor") else module.weight
            number = int((weight == 0).sum())
            self.zeros.setdefault(trainer.current_epoch, {}).setdefault(name, set()).add(number)


def loader(part=slice(None), batch_size=8):
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(16, 3, 4, generator=generator), torch.randn(16, 5, generator=generator)
    return DataLoader(TensorDataset(inputs[part], targets[part]), batch_size=batch_size)


def fit(name, callbacks, ckpt_path=None):
    model, strategy = SCENARIOS[name]
    end = End(callbacks[0])
    data = loader() if name == "tensor parallel" else loader(slice(RANK, None, 2), 4)
    acting = Acting()
    trainer = pl.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=2,
        strategy=strategy(),
        use_distributed_sampler=False,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        gradient_clip_val=None if name == "tensor parallel" else 0.5,  # torch takes no norm of both kinds of tensors
        callbacks=[*callbacks, acting, end],
    )
    trainer.fit(model(), data, data, ckpt_path=ckpt_path)
    return {**end.result, "acting": acting.zeros}


class End(pl.Callback):
    """What the run ended with, whole."""

    def __init__(self, callback):
        self.callback = callback

    def on_train_end(self, trainer, pl_module):
        self.result = {
            "weights": full_weights(pl_module),
            "masks": {name: mask["bits"] for name, mask in self.callback.masks.state_dict().items()},
            "rows": list(self.callback.ratios),
            "rates": next((dict(c.multipliers) for c in trainer.callbacks if isinstance(c, TBSigmoid)), {}),
            "seen": trainer.callback_metrics["pruning/sparsity"].item(),
        }


def cubic(name, *extra, ckpt_path=None):
    """Beside learning rates by layer, and under DDP averages (which Lightning does not make of sharded weights)."""
    average = [EMAWeightAveraging(decay=0.9)] if name == "DDP" else []
    pruning = LayerwisePruning(SPARSITY, schedule=Cubic(0, 3), summary=False)
    return fit(name, [pruning, TBSigmoid(summary=False), *average, *extra], ckpt_path)


def straight(name, folder):
    return cubic(name, ModelCheckpoint(folder / name, filename="{epoch}", save_top_k=-1))


def resumed(name, folder):
    save = ModelCheckpoint(folder / name, filename="{epoch}-resumed", save_top_k=-1)
    return cubic(name, save, ckpt_path=folder / name / "epoch=1.ckpt")


def once(name, folder):
    return fit(name, [LayerwisePruning(SPARSITY, schedule=OneShot(), summary=False)])


RUNS = [("DDP", straight), ("FSDP2", straight), ("FSDP2", resumed), ("FSDP2", once), ("tensor parallel", once)]


def main(folder):
    torch.set_num_threads(1)
    results = {(name, run.__name__): run(name, folder) for name, run in RUNS}
    (folder / f"rank{RANK}.pkl").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
