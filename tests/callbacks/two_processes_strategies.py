"""Learning rates by layer under every strategy, in two processes on the CPU; each rank writes what it saw."""

import pickle
import re
import sys
import warnings
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import lightning.pytorch as pl
import pytorch_lightning as older
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy, ModelParallelStrategy
from torch import nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms.analysis import Selection, layer_weights, parameter_layers
from lightning_farms.analysis._engine import analysis as engine
from lightning_farms.balancing import Control
from lightning_farms.balancing.structure import structure
from lightning_farms.callbacks import TempBalance
from lightning_farms.callbacks._spectral.strategies import whole_shapes
from lightning_farms.optim import layerwise_param_groups
from tests.callbacks.two_processes import PATIENCE, RANK, SIZE

RATE = 0.1


class Body(nn.Module):
    """A few layers of the kinds that strategies treat differently, and one that is never used if asked for."""

    def __init__(self, spare):
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, SIZE) / 10)  # of no layer, though flattened it looks like a norm
        self.conv = nn.Conv1d(12, SIZE // 2, 2, stride=SIZE // 2, bias=False)
        self.blocks = nn.Sequential(
            nn.Sequential(nn.Linear(SIZE, SIZE), nn.LayerNorm(SIZE)),
            nn.Sequential(nn.Linear(SIZE, 40), nn.ReLU(), nn.Linear(40, SIZE)),
        )
        self.normalised = nn.utils.parametrizations.weight_norm(nn.Linear(SIZE, SIZE))
        self.head = nn.Linear(SIZE, 20)
        self.spare = nn.Linear(SIZE, SIZE) if spare else None

    def forward(self, x):
        x = self.conv(x).flatten(1).relu() + self.table
        return self.head(self.normalised(self.blocks(x)).relu())


class Steps:
    def __init__(self, spare=False):
        super().__init__()
        torch.manual_seed(0)
        self.body = Body(spare)

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.body(x), y)

    def validation_step(self, batch, batch_idx):
        self.log("validation", self.training_step(batch, batch_idx), sync_dist=True)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=RATE, momentum=0.9)


class Net(Steps, pl.LightningModule):
    pass


class OlderNet(Steps, older.LightningModule):
    pass


class CompiledNet(Net):
    def configure_model(self):
        if isinstance(self.body, Body):
            self.body = torch.compile(self.body, backend="eager")


class FSDP2Net(Net):
    """Everything is sharded, in three units."""

    def configure_model(self):
        mesh = self.device_mesh["data_parallel"]
        for module in (*self.body.blocks, self.body):
            fully_shard(module, mesh=mesh)


class TensorParallelNet(Net):
    """Two layers are cut, one by columns and one by rows; the others are whole."""

    def configure_model(self):
        plan = {"body.blocks.1.0": ColwiseParallel(), "body.blocks.1.2": RowwiseParallel()}
        parallelize_module(self, self.device_mesh["tensor_parallel"], plan)


class ZeroNet(Net):
    """Each rank keeps the optimizer's state of a part of the parameters."""

    def configure_optimizers(self):
        return zero(layerwise_param_groups(self.named_parameters(), parameter_layers(self)))


class MixedZeroNet(Net):
    def configure_optimizers(self):
        return zero(self.parameters())


def zero(parameters):
    from torch.distributed.optim import ZeroRedundancyOptimizer  # warns when imported

    return ZeroRedundancyOptimizer(parameters, optimizer_class=torch.optim.SGD, lr=RATE, momentum=0.9)


class Sentences(nn.Module):
    """Weights that several modules share, that lie in one parameter, and that are not trained."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(40, 32)
        self.positions = nn.Parameter(torch.randn(1, 32))
        self.norm = nn.LayerNorm(32)
        self.attention = nn.MultiheadAttention(32, 2)
        self.recurrent = nn.LSTM(32, 32)
        self.frozen = nn.Linear(32, 32).requires_grad_(False)
        self.head = nn.Linear(32, 40, bias=False)
        self.head.weight = self.table.weight


class OnCPU:
    """It tells FSDP the device: Lightning's has no index on the CPU, and FSDP looks for a GPU then."""

    def __init__(self, **kwargs):
        super().__init__(process_group_backend="gloo", timeout=PATIENCE, **kwargs)

    def _setup_model(self, model):
        device, sharding = torch.device("cpu"), self.sharding_strategy
        return FullyShardedDataParallel(model, device_id=device, sharding_strategy=sharding, **self.kwargs)


class FSDPOnCPU(OnCPU, FSDPStrategy):
    pass


class OlderFSDPOnCPU(OnCPU, older.strategies.FSDPStrategy):
    pass


def ddp(**options):
    return DDPStrategy(process_group_backend="gloo", timeout=PATIENCE, **options)


def model_parallel(data, tensor):
    return ModelParallelStrategy(
        data_parallel_size=data, tensor_parallel_size=tensor, process_group_backend="gloo", timeout=PATIENCE
    )


SCENARIOS = {
    "FSDP2": (FSDP2Net, partial(model_parallel, 2, 1)),
    "tensor parallel": (TensorParallelNet, partial(model_parallel, 1, 2)),
    "FSDP1": (Net, partial(FSDPOnCPU, auto_wrap_policy={nn.Sequential}, state_dict_type="sharded")),
    "FSDP1 of pytorch_lightning": (
        OlderNet,
        partial(OlderFSDPOnCPU, auto_wrap_policy={nn.Sequential}, state_dict_type="sharded"),
    ),
    "FSDP1, one unit, gradients only": (Net, partial(FSDPOnCPU, sharding_strategy="SHARD_GRAD_OP")),
    "FSDP1, nothing sharded": (Net, partial(FSDPOnCPU, sharding_strategy="NO_SHARD")),
    "ZeRO": (ZeroNet, ddp),
    "unused layer": (
        partial(Net, spare=True),
        partial(ddp, find_unused_parameters=True, gradient_as_bucket_view=True),
    ),
    "static graph, compiled": (CompiledNet, partial(ddp, static_graph=True)),
}
RESUMED = ("FSDP2", "FSDP1", "FSDP1 of pytorch_lightning", "ZeRO")
BROKEN = ("FSDP2", "tensor parallel", "FSDP1")


class Record(pl.Callback):
    """What the run started and ended with, gathered by other means than those under test."""

    def __init__(self, callback):
        self.callback = callback
        self.result = {}

    def on_train_start(self, trainer, pl_module):
        self.result["initial"] = dict(self.callback.multipliers)

    def on_train_end(self, trainer, pl_module):
        with FullyShardedDataParallel.summon_full_params(trainer.strategy.model, writeback=False):
            self.result["weights"] = full_weights(pl_module)
            with whole_shapes(trainer):
                self.result["matrices"] = {layer.name: layer.matrices.clone() for layer in layer_weights(pl_module)}
        self.result |= {
            "rows": list(self.callback.report or ()),
            "multipliers": dict(self.callback.multipliers),
            "rates": [group["lr"] for group in trainer.optimizers[0].param_groups],
            "metrics": sorted(trainer.callback_metrics),
        }


def full_weights(pl_module):
    named = {unwrapped(name): p.detach() for name, p in pl_module.named_parameters()}
    return {name: (p.full_tensor() if isinstance(p, DTensor) else p).clone() for name, p in named.items()}


def unwrapped(name):
    return re.sub(r"_fsdp_wrapped_module\.|_orig_mod\.", "", name)


def loader(batch_size, part=slice(None)):
    generator = torch.Generator().manual_seed(1)
    inputs, targets = torch.randn(16, 12, SIZE, generator=generator), torch.randn(16, 20, generator=generator)
    return DataLoader(TensorDataset(inputs[part], targets[part]), batch_size=batch_size)


def package(name):
    return older if "pytorch_lightning" in name else pl


def fit(name, *extra, ckpt_path=None, action="always"):
    model, strategy = SCENARIOS[name]
    callback = TempBalance(summary=False)
    record = Record(callback)
    trainer = package(name).Trainer(
        max_epochs=2,
        accelerator="cpu",
        devices=2,
        strategy=strategy(),
        use_distributed_sampler=False,
        limit_val_batches=1,
        callbacks=[callback, record, *extra],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=bool(extra),
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.filterwarnings(action, message="The analysis failed on this rank")
        data = loader(8) if name == "tensor parallel" else loader(4, slice(RANK, None, 2))
        trainer.fit(model(), data, data, ckpt_path=ckpt_path)
    return {**record.result, "warnings": [str(warning.message) for warning in caught]}


def straight(name, folder):
    save = package(name).callbacks.ModelCheckpoint(folder / name, filename="{epoch}", save_top_k=-1)
    result = fit(name, *([save] if name in RESUMED else []))
    if name == "ZeRO":
        saved = torch.load(folder / name / "epoch=1.ckpt")["optimizer_states"][0]
        result["saved"] = [group["lr"] for group in saved["param_groups"]]
    return result


def resumed(name, folder):
    save = package(name).callbacks.ModelCheckpoint(folder / name, filename="{epoch}-resumed")
    return fit(name, save, ckpt_path=folder / name / "epoch=0.ckpt")


def broken(name, folder, action="always"):
    """The decomposition raises on rank one."""

    def fails(*args, **kwargs):
        raise torch.OutOfMemoryError("out of memory")

    decompose = engine.decompose
    engine.decompose = fails if RANK == 1 else decompose
    try:
        return fit(name, action=action)
    finally:
        engine.decompose = decompose


def refused(folder):
    SCENARIOS["refused"] = MixedZeroNet, ddp
    try:
        return fit("refused")
    except MisconfigurationException as error:
        return str(error)


def flattened(make_model, folder, *, use_orig_params=True):
    """What is known of a model whose parameters are flat and cut, and of one that is not."""
    model, strategy = make_model(), FSDPOnCPU()
    names = {parameter: name for name, parameter in model.named_parameters()}
    strategy.model = FullyShardedDataParallel(
        model,
        device_id=torch.device("cpu"),
        auto_wrap_policy=ModuleWrapPolicy({nn.LSTM, nn.MultiheadAttention}),
        use_orig_params=use_orig_params,
    )
    trainer = SimpleNamespace(strategy=strategy)
    try:
        with whole_shapes(trainer) as original:
            layer_of, holders, _, _ = structure(model, Selection(), Control(), original)
    except MisconfigurationException as error:
        return str(error)
    with whole_shapes(trainer):
        matrices = {layer.name: layer.matrices for layer in layer_weights(model)}
    layers = {names[parameter]: layer for parameter, layer in layer_of.items()}
    return layers, {name: [names[p] for p in held] for name, held in holders.items()}, matrices


def main(folder):
    torch.set_num_threads(1)
    runs = {(name, "straight"): partial(straight, name) for name in SCENARIOS}
    runs |= {(name, "resumed"): partial(resumed, name) for name in RESUMED}
    runs |= {(name, "broken"): partial(broken, name) for name in BROKEN}
    runs["ZeRO", "strict"] = partial(broken, "ZeRO", action="error")
    runs["ZeRO", "refused"] = refused
    runs["FSDP1", "structure"] = partial(flattened, Sentences)
    runs["FSDP1", "refused"] = partial(flattened, Net, use_orig_params=False)
    results = {key: run(folder) for key, run in runs.items()}
    (folder / f"rank{RANK}.pkl").write_bytes(pickle.dumps(results))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
