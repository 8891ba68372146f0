"""Two processes that shard a model over themselves and go through its weights. Run by the tests."""

import sys
from datetime import timedelta
from pathlib import Path

import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh
from torch.nn.utils import parametrizations

from lightning_farms.analysis import Selection, layer_weights, parameter_layers

LIMIT = timedelta(seconds=100)
SELECTION = Selection(exclude=("head",))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(30, 12)
        self.attention = nn.MultiheadAttention(12, 2)
        self.convolution = nn.Conv2d(5, 7, 3)  # 7 rows do not divide by 2
        self.normed = parametrizations.weight_norm(nn.Linear(12, 9))
        self.tensor_parallel = nn.Linear(10, 8)
        self.head = nn.Linear(12, 30)


def make_model():
    torch.manual_seed(0)
    return Net()


def run_rank(rank: int, folder: Path) -> None:
    store = torch.distributed.FileStore(str(folder / "store"), 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=LIMIT)
    mesh = init_device_mesh("cpu", (2,))
    model = make_model()
    linear = model.tensor_parallel
    linear.weight = nn.Parameter(distribute_tensor(linear.weight.detach(), mesh, [Shard(0)]))
    fully_shard(model.attention, mesh=mesh)
    fully_shard(model, mesh=mesh, ignored_params=set(linear.parameters()))
    before = dict(model.named_parameters())
    matrices = {w.name: w.matrices.clone() for w in layer_weights(model, SELECTION) if not w.reason}
    shapes = {w.name: tuple(w.matrices.shape) for w in layer_weights(model, SELECTION, values=False) if not w.reason}
    layers = parameter_layers(model)
    results = {
        "matrices": matrices,
        "shapes": shapes,
        "owners": {name: layers[p] for name, p in before.items()},
        "unchanged": all(p is before[name] for name, p in model.named_parameters()),
        "local": {name: tuple(p.to_local().shape) for name, p in before.items() if hasattr(p, "to_local")},
    }
    torch.save(results, folder / f"rank{rank}.pt")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    run_rank(int(sys.argv[1]), Path(sys.argv[2]))
