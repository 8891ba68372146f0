"""A fault on rank 1 of a plain loop, in one function after another; started by test_faulty_rank.py."""

import datetime
import os
import sys
from contextlib import nullcontext
from pathlib import Path

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from lightning_farms import Balancer, LinearMap
from tests.callbacks.injection import counted, fault_in, functions

ROOMS = ("balancing", "analysis", "optim")


def train(rank, fault=None):
    """What came of it: number of analyses, multipliers, weights."""
    torch.manual_seed(0)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(12, 16), nn.Linear(16, 16), nn.Linear(16, 12)))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    with Balancer(model, optimizer, LinearMap(0.5, 1.5), warn=lambda kind, message: None) as balancer:
        balancer.update()
        for epoch in range(2):
            optimizer.zero_grad()
            model(torch.randn(4, 12)).square().mean().backward()
            optimizer.step()
            with fault_in(fault) if fault and rank and epoch == 0 else nullcontext():
                balancer.update()
        weights = torch.cat([parameter.detach().flatten() for parameter in model.parameters()])
        return len(balancer.history.epochs), balancer.multipliers, weights


def outcome(number, rank, folder, fault=None):
    """Of one training, with processes that know each other anew: a broken group stays broken."""
    store = distributed.FileStore(str(folder / f"store{number}"), 2)
    limit = datetime.timedelta(seconds=3)
    distributed.init_process_group("gloo", store=store, rank=rank, world_size=2, timeout=limit)
    try:
        return train(rank, fault)
    except RuntimeError as error:
        return f"{type(error).__name__}: {error}"
    finally:
        distributed.destroy_process_group()


def main(folder):
    rank = int(os.environ["LOCAL_RANK"])
    everything = functions(*(f"lightning_farms.{room}" for room in ROOMS))
    with counted() as reached:
        outcome("", rank, folder)
    names = [[name for name, function in everything.items() if function.__code__ in reached]]
    distributed.init_process_group(
        "gloo", store=distributed.FileStore(str(folder / "names"), 2), rank=rank, world_size=2
    )
    distributed.broadcast_object_list(names)
    distributed.destroy_process_group()
    found = {name: outcome(number, rank, folder, everything[name]) for number, name in enumerate(names[0])}
    torch.save(found, folder / f"rank{rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
