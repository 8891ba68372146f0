"""A plain loop in two processes; started by test_two_processes.py."""

import os
import sys
from functools import partial
from pathlib import Path
from unittest import mock

import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel

from lightning_farms import Balancer, Control, LinearMap, analyze


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
        weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in whole_parameters(model)]
        return balancer.multipliers, balancer.history.rows("alpha"), [w.detach().clone() for w in weights]


def whole_parameters(model):
    if not isinstance(model, FullyShardedDataParallel):
        return list(model.parameters())
    with FullyShardedDataParallel.summon_full_params(model):
        return [p.detach().clone() for p in model.parameters()]


def refusal(wrap):
    model = wrap(make_model())
    try:
        Balancer(model, torch.optim.SGD(model.parameters(), lr=0.05), LinearMap()).attach()
    except TypeError as error:
        return str(error)


def one_fails(rank):
    """The second analysis fails on rank 1 alone: the reports' positions and the multipliers on this rank."""
    model = DistributedDataParallel(make_model())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    said = []
    with Balancer(model, optimizer, LinearMap(0.5, 1.5), warn=lambda kind, text: said.append(kind)) as balancer:
        first = balancer.update()
        model(torch.randn(8, 12)).square().mean().backward()
        optimizer.step()
        with mock.patch("lightning_farms.balancing.balancer.analyze", fails_in_the_end if rank else analyze):
            again = balancer.update()
        return again is first, said, balancer.multipliers, len(balancer.history.epochs)


def fails_in_the_end(*args, **options):
    analyze(*args, **options)
    raise OSError("not today")


def main(folder):
    rank = int(os.environ["LOCAL_RANK"])
    distributed.init_process_group("gloo", rank=rank, world_size=2)
    ways = {"DDP": DistributedDataParallel, "FSDP2": sharded, "FSDP1": flattened, "FSDP1, one unit": one_unit}
    results = {name: train(wrap, rank, 2) for name, wrap in ways.items()}
    results["flat"] = refusal(partial(one_unit, use_orig_params=False))
    results["one fails"] = one_fails(rank)
    results["inner"] = refusal(lambda model: one_unit(model).module)
    torch.save(results, folder / f"rank{rank}.pt")
    distributed.destroy_process_group()


def one_unit(model, **options):
    options = {"use_orig_params": True, **options}
    return FullyShardedDataParallel(model, device_id=torch.device("cpu"), **options)


def flattened(model):
    return one_unit(model, auto_wrap_policy=ModuleWrapPolicy({nn.Linear}))


def sharded(model):
    mesh = distributed.device_mesh.init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
