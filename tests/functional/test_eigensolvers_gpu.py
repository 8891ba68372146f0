"""Every way on a CUDA device against float64 on the CPU. These have not been run yet: no device was at hand."""

import importlib.util

import pytest
import torch

from lightning_farms.functional import checked_esd, esd
from lightning_farms.functional.eigensolvers import Way

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
WAYS = [
    Way.TORCH,
    pytest.param(Way.CUPY, marks=pytest.mark.skipif(not importlib.util.find_spec("cupy"), reason="needs CuPy")),
    Way.HOST,
]


def agrees(matrices, way, quick):
    """The spectra of a few of them, and the sums of all."""
    found = checked_esd(matrices, quick=quick, where=way)
    assert found.eigenvalues.device == matrices.device
    assert not found.sum_error.any()
    assert not found.squares_error.any()
    few = [0, len(matrices) // 2, len(matrices) - 1]
    wanted = esd(matrices[few].detach().cpu())
    size = (1e-5 if quick else 1e-11) * wanted.amax().item()
    torch.testing.assert_close(found.eigenvalues[few].detach().cpu(), wanted, rtol=0, atol=size)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("size", [1, 2, 31, 32, 33, 64, 511, 513, 1024])
def test_sizes(size, quick, way):
    torch.manual_seed(0)
    for batch in (1, 3):
        agrees(torch.randn(batch, size, size + 7, device="cuda"), way, quick)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("batch", [65_535, 65_536])
def test_large_batches(batch, way):
    torch.manual_seed(0)
    agrees(torch.randn(batch, 4, 5, device="cuda"), way, quick=True)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", [torch.complex64, torch.complex128])
@pytest.mark.parametrize("size", [8, 17, 40, 130])
def test_complex(size, dtype, way):
    """Where a device's routine is wrong, its sums say so: what passes has to be right."""
    torch.manual_seed(0)
    matrices = torch.randn(512, size, size + 3, dtype=dtype, device="cuda")
    found = checked_esd(matrices, quick=True, where=way)
    passed = (found.sum_error == 0) & (found.squares_error == 0)
    assert passed.all() or way is not Way.HOST
    wanted = esd(matrices.cpu())
    error = (found.eigenvalues.cpu() - wanted).abs().amax(-1) / wanted.amax(-1)
    assert (error[passed.cpu()] < 1e-5).all()


@pytest.mark.parametrize("way", WAYS)
def test_views_and_weights_that_require_grad(way):
    torch.manual_seed(0)
    base = torch.randn(5, 90, 81, device="cuda", requires_grad=True)
    for matrices in (base, base[:, ::2, 1::3], base.mT):
        agrees(matrices, way, quick=False)


@pytest.mark.parametrize("way", WAYS)
def test_on_another_stream_nothing_is_read_before_it_is_there(way):
    """The weights are written late on a stream of their own, on which the decomposition has to follow."""
    torch.manual_seed(0)
    source = torch.randn(64, 48, 50, device="cuda")
    expected = esd(source.cpu())
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    for _ in range(3):
        with torch.cuda.stream(stream):
            weights = torch.zeros_like(source)
            torch.cuda._sleep(50_000_000)
            weights.copy_(source)
            found = checked_esd(weights, where=way).eigenvalues
        stream.synchronize()
        torch.testing.assert_close(found.cpu(), expected, rtol=0, atol=1e-10 * expected.amax().item())


def test_a_gradient_goes_through_whatever_the_size():
    weight = torch.randn(3, 40, 50, dtype=torch.float64, device="cuda", requires_grad=True)
    esd(weight).sum().backward()
    torch.testing.assert_close(weight.grad, 2 * weight.detach(), rtol=1e-9, atol=1e-9)
