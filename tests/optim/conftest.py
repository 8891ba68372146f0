"""Fixtures of the optimizer tests."""

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lightning_farms.optim import LayerwiseScaling


def _snapshot(optimizer):
    """Every group with its values; tensors by identity, so that a copied or replaced one shows."""
    return [
        {k: [id(p) for p in v] if k == "params" else (id(v) if torch.is_tensor(v) else v) for k, v in g.items()}
        for g in optimizer.param_groups
    ]


@pytest.fixture
def snapshot():
    return _snapshot


def _hook_count(optimizer):
    return sum(len(v) for k, v in vars(optimizer).items() if k.startswith("_optimizer_") and k.endswith("_hooks"))


@pytest.fixture
def hook_count():
    return _hook_count


def _measured_rates(optimizer, *parameters, closure=None):
    """The rate that one step of plain SGD uses: from 0, with gradient 1, the weight becomes -rate."""
    for p in parameters:
        p.data.zero_()
        p.grad = torch.ones_like(p)
    optimizer.step(closure)
    return [-p.detach()[0].item() for p in parameters]


@pytest.fixture
def measured_rates():
    return _measured_rates


@pytest.fixture
def toy():
    """One group over two layers, plain SGD in float64."""
    a, b = nn.Parameter(torch.zeros(2, dtype=torch.float64)), nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = SGD([a, b], lr=0.1)
    return a, b, optimizer, LayerwiseScaling(optimizer, {a: "a", b: "b"})
