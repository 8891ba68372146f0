"""The table of ways, and the ways as far as a CPU can run them; NumPy stands in for CuPy."""

import sys
import types

import numpy as np
import pytest
import torch

from lightning_farms.functional import checked_esd, esd
from lightning_farms.functional.eigensolvers import (
    MOST_MATRICES,
    RULES,
    Problem,
    Way,
    gram_eigenvalues,
    problem_of,
    way_of,
)

CUDA = Problem("cuda", torch.float32, size=64, batch=500, torch=(2, 13))


@pytest.fixture
def cupy(monkeypatch):
    """A module of CuPy's name with its three functions that are used; batches are noted."""
    module = types.ModuleType("cupy")
    module.batches = []

    def eigvalsh(matrices, UPLO):
        module.batches.append(len(matrices))
        return np.linalg.eigvalsh(matrices, UPLO=UPLO)[..., ::-1].copy()  # a Jacobi routine need not sort

    module.from_dlpack = np.from_dlpack
    module.linalg = types.SimpleNamespace(eigvalsh=eigvalsh)
    monkeypatch.setitem(sys.modules, "cupy", module)
    return module


@pytest.fixture
def no_cupy(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)


def upper_gram(*shape, dtype=torch.float64):
    torch.manual_seed(0)
    matrices = torch.randn(*shape, dtype=dtype)
    return torch.triu(matrices @ matrices.mH)


def expected(upper):
    whole = upper + torch.triu(upper, 1).mH
    return torch.tensor(np.linalg.eigvalsh(whole.detach().numpy()))


def test_the_table_with_cupy(cupy):
    old = CUDA._replace(torch=(2, 11))
    assert way_of(CUDA) is Way.TORCH
    assert way_of(old) is Way.CUPY
    assert way_of(old._replace(size=33)) is Way.CUPY
    assert way_of(old._replace(size=32)) is Way.TORCH
    assert way_of(old._replace(batch=1)) is Way.HOST
    assert way_of(old._replace(batch=1), "device") is Way.TORCH
    assert way_of(old._replace(dtype=torch.complex64)) is Way.HOST
    assert way_of(old._replace(dtype=torch.complex64), "device") is Way.CUPY


def test_the_table_without_cupy(no_cupy):
    old = CUDA._replace(torch=(2, 11))
    assert way_of(old) is Way.HOST
    assert way_of(old, "device") is Way.TORCH
    assert way_of(CUDA, "host") is Way.HOST
    for dtype in (torch.complex64, torch.complex128):
        assert way_of(CUDA._replace(dtype=dtype, size=8)) is Way.HOST
    assert way_of(old._replace(differentiable=True)) is Way.TORCH
    for device in ("rocm", "xpu", "meta"):
        assert way_of(old._replace(device=device)) is Way.TORCH


@pytest.mark.parametrize("where", ["auto", "device", "host"])
def test_nothing_changes_on_the_cpu(where):
    for dtype in (torch.float32, torch.complex64):
        assert way_of(CUDA._replace(device="cpu", dtype=dtype), where) is Way.CPU
    matrices = torch.randn(3, 20, 30)
    assert esd(matrices, where=where).equal(esd(matrices))


def test_every_rule_gives_a_reason_and_the_last_holds_always():
    assert all(rule.because for rule in RULES)
    assert RULES[-1].holds(CUDA._replace(device="anything", torch=(0, 0), batch=0, size=10**6))


def test_the_running_version_is_read():
    major, minor = torch.__version__.split(".")[:2]
    assert problem_of(torch.device("cuda", 1), torch.float32, 2, 3).torch == (int(major), int(minor))
    assert problem_of(torch.device("cuda", 1), torch.float32, 2, 3).device == "cuda"


def test_rocm_is_told_from_cuda(monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert problem_of(torch.device("cuda"), torch.float32, 2, 3).device == "rocm"


def test_wrong_where():
    with pytest.raises(ValueError, match=r"Expected argument `where` to be one of \('auto', .* but got 'gpu'"):
        esd(torch.eye(3), where="gpu")


def test_cupy_that_is_not_there(no_cupy):
    with pytest.raises(ImportError, match=r"lightning-farms\[gpu\]"):
        gram_eigenvalues(upper_gram(2, 5, 5), Way.CUPY)


@pytest.mark.parametrize("way", [Way.TORCH, Way.CUPY, Way.HOST])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128])
@pytest.mark.parametrize("shape", [(1, 1, 1), (3, 2, 2), (2, 2, 31, 31), (2, 33, 33), (0, 5, 5), (2, 65, 65)])
def test_ways_against_numpy(cupy, shape, dtype, way):
    upper = upper_gram(*shape, dtype=dtype)
    got = gram_eigenvalues(upper, way)
    assert got.dtype == upper.real.dtype
    assert got.shape == upper.shape[:-1]
    precise = 1e-12 if got.dtype == torch.float64 else 2e-5
    torch.testing.assert_close(got, expected(upper), rtol=precise, atol=precise * (got.max().item() if len(got) else 1))


@pytest.mark.parametrize("way", [Way.TORCH, Way.CUPY, Way.HOST])
def test_batches_are_cut_below_the_limit(cupy, way, monkeypatch):
    real, batches = torch.linalg.eigvalsh, []

    def eigvalsh(matrices, **options):
        batches.append(len(matrices))
        return real(matrices, **options)

    monkeypatch.setattr(torch.linalg, "eigvalsh", eigvalsh)
    upper = torch.arange(1.0, MOST_MATRICES + 4)[:, None, None]
    assert gram_eigenvalues(upper, way).equal(upper[:, :, 0])
    assert (cupy.batches if way is Way.CUPY else batches) == [MOST_MATRICES, 3]


def test_the_host_takes_slice_by_slice(monkeypatch):
    """64 MiB at a time: of 128 x 128 matrices in double precision 512."""
    sizes = []

    def eigvalsh(matrices, **options):
        sizes.append(len(matrices))
        return torch.zeros(matrices.shape[:-1])

    monkeypatch.setattr(torch.linalg, "eigvalsh", eigvalsh)
    gram_eigenvalues(torch.zeros(1, 128, 128, dtype=torch.float64).expand(1025, -1, -1), Way.HOST)
    assert sizes == [512, 512, 1]


@pytest.mark.parametrize("way", [Way.TORCH, Way.CUPY, Way.HOST])
def test_checks_guard_every_way(cupy, monkeypatch, way):
    matrices = torch.randn(4, 40, 60, dtype=torch.float64)
    good = checked_esd(matrices, where=way)
    torch.testing.assert_close(good.eigenvalues, esd(matrices), rtol=1e-10, atol=1e-10)
    assert not good.sum_error.any()
    assert not good.squares_error.any()
    for module in (torch.linalg, cupy.linalg):
        real = module.eigvalsh
        monkeypatch.setattr(module, "eigvalsh", lambda values, real=real, **options: spoiled(real(values, **options)))
    bad = checked_esd(matrices, where=way)
    assert (bad.squares_error > 0).all()
    assert not bad.sum_error.any()  # the sum alone would not have told


def spoiled(eigenvalues):
    """With the right sum, as where a routine returns the diagonal."""
    return eigenvalues * 0 + eigenvalues.mean(-1)[..., None]


@pytest.mark.parametrize("way", [Way.TORCH, Way.CUPY, Way.HOST])
def test_weights_that_require_grad_and_views(cupy, way):
    base = torch.randn(3, 50, 41, dtype=torch.float64, requires_grad=True)
    for matrices in (base, base[:, ::2, 1::3], base.mT, torch.complex(base, base).conj()):
        got = checked_esd(matrices, where=way).eigenvalues.detach()
        torch.testing.assert_close(got, esd(matrices.detach()), rtol=1e-9, atol=1e-9)


def test_a_failure_of_cupys_is_one_of_the_decomposition(cupy):
    def failing(matrices, **options):
        raise RuntimeError("CUSOLVER_STATUS_EXECUTION_FAILED")

    cupy.linalg.eigvalsh = failing
    with pytest.raises(torch.linalg.LinAlgError, match="RuntimeError: CUSOLVER_STATUS"):
        gram_eigenvalues(upper_gram(2, 5, 5), Way.CUPY)
    cupy.linalg.eigvalsh = lambda matrices, **options: (_ for _ in ()).throw(MemoryError())
    with pytest.raises(MemoryError):
        gram_eigenvalues(upper_gram(2, 5, 5), Way.CUPY)


def test_shapes_on_the_meta_device():
    got = gram_eigenvalues(torch.empty(2, 3, 40, 40, dtype=torch.complex64, device="meta"), Way.TORCH)
    assert (got.shape, got.dtype, got.device.type) == ((2, 3, 40), torch.float32, "meta")
