"""Analyses on a CUDA device against the CPU's. These have not been run yet: no device was at hand."""

import warnings

import pytest
import torch
from torch import nn

from lightning_farms import Balancer, SigmoidMap
from lightning_farms.analysis import FARMS, WholeMatrix, analyze
from lightning_farms.models import resnet18

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def alphas_agree(got, expected):
    for row, wanted in zip(got, expected, strict=True):
        assert row.status == wanted.status
        assert row.alpha == pytest.approx(wanted.alpha, abs=1e-4, nan_ok=True)
        assert row.way in ("torch", "cupy", "host")


@pytest.mark.parametrize("where", ["auto", "device", "host"])
@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("method", [FARMS(), WholeMatrix(fit="ks")])
def test_alphas_are_the_cpus(method, workers, where):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 64, 3), nn.Linear(200, 60), nn.Linear(64, 64), nn.Linear(64, 64).bfloat16())
    expected = analyze(model, method)
    alphas_agree(analyze(model.cuda(), method, workers=workers, where=where), expected)


@pytest.mark.parametrize("where", ["auto", "device", "host"])
def test_products_of_low_rank_are_the_cpus(where):
    torch.manual_seed(0)
    layer = nn.Linear(90, 120)
    layer.lora_A, layer.lora_B = nn.Parameter(torch.randn(16, 90)), nn.Parameter(torch.randn(120, 16))
    expected = analyze(layer)
    assert expected["lora"].eigenvalue_count == 32
    alphas_agree(analyze(layer.cuda(), where=where), expected)


@pytest.mark.parametrize("where", ["auto", "device", "host"])
def test_a_whole_network_twice_is_the_same_bit_for_bit(where):
    torch.manual_seed(0)
    model = resnet18(num_classes=100).cuda()
    first = analyze(model, where=where, workers=4)
    assert list(analyze(model, where=where, workers=4)) == list(first)


def test_multipliers_are_the_cpus():
    found = []
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 32)).to(device)
        with Balancer(model, torch.optim.SGD(model.parameters(), lr=0.1), SigmoidMap()) as balancer:
            balancer.update()
        found.append(balancer.multipliers)
    assert found[1] == pytest.approx(found[0], abs=1e-3)


def synchronisations(layers, where):
    model = nn.Sequential(*[nn.Linear(64, 64) for _ in range(layers)]).cuda()
    analyze(model, where=where, workers=1)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            analyze(model, where=where, workers=1)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    return sum("called a synchronizing" in str(each.message) for each in caught)


@pytest.mark.parametrize("where", ["device", "host"])
def test_the_host_does_not_wait_for_every_layer(where):
    """As many as there are sizes of windows, and passes; CuPy and the host's own waits are not counted by PyTorch."""
    assert synchronisations(4, where) == synchronisations(24, where)
