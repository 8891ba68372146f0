"""A plain loop in two processes; started by test_two_processes.py."""

import os
import sys
from pathlib import Path

import torch
from torch import distributed, nn
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lightning_farms import Balancer, Control, LinearMap


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 12))


def train(wrap, rank=0, processes=1):
    """Two epochs of three steps; every process has its part of each batch."""
    generator = torch.Generator().manual_seed(1)
    data = torch.randn(3, 8, 12, generator=generator)
    model = wrap(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    with Balancer(model, optimizer, LinearMap(0.5, 1.5), control=Control(normalize="mean")) as balancer:
        balancer.update()
        for _ in range(2):
            for batch in data:
                optimizer.zero_grad()
                model(batch.chunk(processes)[rank]).square().mean().backward()
                optimizer.step()
            balancer.update()
        assert balancer.fault is None
        weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in model.parameters()]
        return balancer.multipliers, balancer.history.rows("alpha"), [w.detach().clone() for w in weights]


def main(folder):
    rank = int(os.environ["LOCAL_RANK"])
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    results = {"DDP": train(DistributedDataParallel, rank, 2), "FSDP2": train(sharded, rank, 2)}
    torch.save(results, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


def sharded(model):
    mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
