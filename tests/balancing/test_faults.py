"""Faults of our own in a plain loop: said once, the loop goes on, and nothing is left on the optimizers."""

import warnings
from contextlib import nullcontext

import pytest
import torch
from torch import nn

from lightning_farms import Balancer, Control, LinearMap
from tests.callbacks.injection import Fault, counted, fault_in, functions


class Writer:
    def __init__(self):
        self.written = set()

    def add_scalar(self, key, value, step):
        self.written.add((key, step))


def train(fault=None):
    """Three rounds; the fault is there in the second."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 10))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    writer = Writer()
    with Balancer(model, optimizer, LinearMap(0.5, 1.5), control=Control(ramp_steps=3)) as balancer:
        for number in range(3):
            with nullcontext() if fault is None or number != 1 else fault_in(fault):
                balancer.update()
                balancer.log(writer, balancer.steps)
            for _ in range(2):
                optimizer.zero_grad()
                model(torch.randn(4, 12)).square().mean().backward()
                optimizer.step()
    return balancer, optimizer, writer


@pytest.mark.parametrize(
    "which", [slice(0, None, 4), pytest.param(slice(0, None), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_fault_in_any_function_is_said_once_and_the_loop_goes_on(which):
    with counted() as reached:
        straight, _, everything = train()
    rooms = "lightning_farms.balancing", "lightning_farms.analysis._engine.decompose"
    found = [function for function in functions(*rooms).values() if function.__code__ in reached]
    assert len(found) > 60
    wrong = []
    for function in found[which]:
        if function.__qualname__ in ("Balancer.update", "Balancer.log", "contained_fault"):
            continue  # what these do is contained
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            balancer, optimizer, writer = train(function)
        said = [str(w.message) for w in caught if Fault.__name__ in str(w.message)]
        logged = {entry for entry in everything.written if entry[1] != 2}
        good = len(said) <= 1 and balancer.history.steps[-1] == 4 and len(balancer.multipliers) == 2
        if not (good and logged <= writer.written and not optimizer._optimizer_step_pre_hooks):
            wrong.append((function.__qualname__, said, balancer.history.steps))
    assert not wrong
    assert straight.history.steps == [0, 2, 4]


def test_an_optimizer_that_cannot_be_hooked_leaves_nothing_on_the_others():
    first, second = nn.Linear(12, 12), nn.Linear(12, 12)
    optimizers = [torch.optim.SGD(layer.parameters(), lr=0.1) for layer in (first, second)]
    with Balancer(second, optimizers[1], LinearMap(0.5, 1.5)):
        both = Balancer(nn.Sequential(first, second), optimizers, LinearMap(0.5, 1.5))
        with pytest.raises(RuntimeError, match="at most one scaling"):
            both.attach()
        assert not optimizers[0]._optimizer_step_pre_hooks
    both.attach()
    both.detach()
