"""DPOT on a CUDA device: the same numbers as on the CPU."""

import pytest
import torch

from lightning_farms.models import DPOT
from tests.models.dpot.plain_dpot import plain_forward

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

SIZES = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 2, "modes": 6}


def _network(normalize):
    torch.manual_seed(0)
    return DPOT(**SIZES, normalize=normalize).cuda(), torch.randn(3, 32, 32, 10, 4, device="cuda")


def _train(forward, model, x):
    model.zero_grad()
    prediction, logits = forward(x)
    (prediction.float().square().sum() + logits.float().square().sum()).backward()
    return prediction.detach().float(), torch.cat([parameter.grad.flatten() for parameter in model.parameters()])


@pytest.mark.parametrize("normalize", [False, True])
def test_float32_equals_the_plain_formulation_and_the_cpu(normalize):
    model, x = _network(normalize)
    result = _train(model, model, x)
    for expected in (
        _train(lambda frames: plain_forward(model, frames), model, x),
        [tensor.cuda() for tensor in _train(model.cpu(), model, x.cpu())],
    ):
        model.cuda()
        for got, wanted in zip(result, expected, strict=True):
            assert (got - wanted).norm() < 1e-5 * wanted.norm()


@pytest.mark.parametrize("normalize", [False, True])
def test_bfloat16_autocast_is_close_to_float32(normalize):
    model, x = _network(normalize)
    expected = _train(model, model, x)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        result = _train(model, model, x)
    for got, wanted in zip(result, expected, strict=True):
        assert (got - wanted).norm() < 0.03 * wanted.norm()


@pytest.mark.filterwarnings("ignore")  # the compiler warns of what it uses itself
@pytest.mark.parametrize("autocast", [False, True])
def test_compiled_equals_eager(autocast):
    model, x = _network(normalize=True)
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=autocast):
        expected = _train(model, model, x)
        result = _train(torch.compile(model, fullgraph=True), model, x)
    for got, wanted in zip(result, expected, strict=True):
        assert (got - wanted).norm() < (0.03 if autocast else 1e-4) * wanted.norm()
