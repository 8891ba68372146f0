"""LAPACK's two steps through SciPy: the eigenvalues are NumPy's, of equal bits everywhere, on one thread of BLAS."""

import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl
import torch

from lightning_farms.analysis import LayerWeight, analyze, analyze_weights
from lightning_farms.functional import checked_esd, eigensolvers, spectrum
from lightning_farms.functional._lapack import available
from lightning_farms.functional.eigensolvers import Problem, Rule, Way, gram_eigenvalues, one_blas_thread, way_of

TYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def gram(*shape, dtype=torch.float32):
    matrices = torch.randn(*shape, dtype=dtype)
    return matrices @ matrices.mH


def by_numpy(matrices):
    precise = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
    return torch.from_numpy(np.linalg.eigvalsh(precise.numpy()))


@pytest.mark.parametrize("scale", [1e-30, 1e-18, 1.0, 1e17])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 2, 5, 31, 64, 200])
def test_eigenvalues_are_numpys(size, dtype, scale):
    matrices = gram(3, size, size + 3, dtype=dtype) * scale
    found = gram_eigenvalues(matrices.triu(), Way.SCIPY)
    expected = by_numpy(matrices)
    assert found.dtype == matrices.real.dtype
    error = (found.double() - expected).abs().amax(-1) / expected.amax(-1)
    assert (error <= 4 * size**0.5 * torch.finfo(dtype).eps).all()
    assert (found.diff() >= 0).all()


def test_what_lies_below_the_diagonal_is_not_read():
    matrices = gram(2, 40, 50)
    found = gram_eigenvalues(matrices.triu() + torch.full_like(matrices, torch.nan).tril(-1), Way.SCIPY)
    assert found.equal(gram_eigenvalues(matrices, Way.SCIPY))


def test_special_matrices():
    assert gram_eigenvalues(torch.zeros(1, 30, 30), Way.SCIPY).equal(torch.zeros(1, 30))
    assert gram_eigenvalues(torch.eye(30)[None], Way.SCIPY).equal(torch.ones(1, 30))
    found = gram_eigenvalues(torch.arange(30.0).diag()[None], Way.SCIPY)
    torch.testing.assert_close(found, torch.arange(30.0)[None])


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [192, 201, 250])
def test_equal_bits_wherever_a_matrix_lies_and_whoever_shares_the_call(size, dtype):
    matrices = torch.randn(3, size, size + 7, dtype=dtype)

    def esd(matrices):
        return checked_esd(matrices, where=Way.SCIPY).eigenvalues

    together = esd(matrices)
    for offset in range(3):
        flat = torch.empty(matrices[1].numel() + offset, dtype=dtype)[offset:]
        moved = flat.view(size, size + 7).copy_(matrices[1])
        assert esd(moved).equal(together[1])
    with one_blas_thread(), ThreadPoolExecutor(3) as pool:
        for values, expected in zip(pool.map(esd, matrices), together, strict=True):
            assert values.equal(expected)


def blas_threads():
    return {each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"}


def test_blas_has_one_thread_meanwhile_and_its_own_number_afterwards():
    gram_eigenvalues(gram(1, 8, 8), Way.SCIPY)  # so that SciPy's library is there
    with threadpoolctl.threadpool_limits(3, "blas"):
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {3}


def test_what_does_not_converge_is_an_error():
    with pytest.raises(torch.linalg.LinAlgError, match="did not converge"):
        gram_eigenvalues(torch.full((1, 8, 8), torch.nan), Way.SCIPY)


def test_an_analysis_holds_blas_to_one_thread(monkeypatch):
    seen, model = [], torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(3)])
    real = eigensolvers.gram_eigenvalues
    monkeypatch.setattr(
        spectrum, "gram_eigenvalues", lambda upper, way: (seen.append((way, blas_threads())), real(upper, way))[1]
    )
    with threadpoolctl.threadpool_limits(3, "blas"):
        report = analyze(model, workers=2)
        assert blas_threads() == {3}
    assert seen == [(Way.SCIPY, {1})] * 3
    assert {row.way for row in report} == {""}


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_found_out(bad):
    matrices = torch.randn(2, 200, 200)
    matrices[0, 3, 4] = bad
    try:
        found = checked_esd(matrices, where=Way.SCIPY)
    except torch.linalg.LinAlgError:
        return
    assert not found.eigenvalues[0].isfinite().all() or found.sum_error[0] != 0


def test_a_wrong_spectrum_is_found_out(monkeypatch):
    matrices = torch.randn(3, 200, 260)
    good = checked_esd(matrices, where=Way.SCIPY)
    assert not good.sum_error.any()
    assert not good.squares_error.any()
    monkeypatch.setattr(spectrum, "gram_eigenvalues", lambda *args: gram_eigenvalues(*args) * 1.5)
    assert (checked_esd(matrices, where=Way.SCIPY).sum_error > 0).all()


def test_the_table_sends_middling_sizes_this_way():
    problem = Problem("cpu", torch.float32, 256, 1, (2, 13), one_blas_thread=True)
    assert way_of(problem) is way_of(problem, "host") is way_of(problem, "device") is Way.SCIPY
    for other in ({"size": 255}, {"size": 2049}, {"differentiable": True}, {"one_blas_thread": False}):
        assert way_of(problem._replace(**other)) is Way.CPU


@pytest.mark.parametrize("dtype", TYPES)
def test_alphas_are_those_of_pytorchs_way(dtype, monkeypatch):
    weight = LayerWeight("w", "linear", (300, 260), torch.randn(1, 300, 260, dtype=dtype), ())
    (found,) = analyze_weights([weight])
    monkeypatch.setattr(eigensolvers, "RULES", (Rule(Way.CPU, "for this test"),))
    (expected,) = analyze_weights([weight])
    assert found != expected  # the last digits tell that it was another way
    assert found.alpha == pytest.approx(expected.alpha, abs=1e-5)
    assert found.frobenius_norm_squared == pytest.approx(expected.frobenius_norm_squared, rel=1e-5)


@pytest.mark.parametrize("missing", ["scipy", "threadpoolctl"])
def test_without_scipy_torch_does_it(missing, monkeypatch):
    model = torch.nn.Linear(300, 300)
    expected = analyze(model)["weight"].alpha
    available.cache_clear()
    monkeypatch.setitem(sys.modules, missing, None)
    assert way_of(Problem("cpu", torch.float32, 300, 1, (2, 13), one_blas_thread=True)) is Way.CPU
    assert analyze(model)["weight"].alpha == pytest.approx(expected, abs=1e-5)
    with pytest.raises(ImportError, match=re.escape('pip install "lightning-farms[scipy]"')):
        gram_eigenvalues(torch.eye(3)[None], Way.SCIPY)
    available.cache_clear()
