"""Eigenvalues of tridiagonal matrices many at once: SciPy's, closed forms, and equal bits in any company."""

import itertools
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import scipy.linalg
import torch

from lightning_farms.functional import _tridiagonal, eigensolvers
from lightning_farms.functional._tridiagonal import LANES, eigenvalues

TYPES = [torch.float32, torch.float64]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def by_scipy(diagonals, beside):
    """The eigenvalues in double precision by bisection, which is another method, of matrices that are not tiny."""
    if diagonals.shape[-1] == 1:
        return diagonals.double()
    options = {"eigvals_only": True, "lapack_driver": "stebz"}
    scale = max(diagonals.abs().max(), beside[:, :-1].abs().max()).double().clamp(min=1e-300)
    rows = zip((diagonals / scale).numpy(), (beside / scale).numpy(), strict=True)
    found = [torch.from_numpy(scipy.linalg.eigh_tridiagonal(d, e[:-1], **options)) for d, e in rows]
    return torch.stack(found) * scale


def check(diagonals, beside, units=4.0):
    """Compare with SciPy's in double precision, the error in units of eps, the norm and the square root of the size."""
    found, converged = eigenvalues(diagonals, beside)
    expected = by_scipy(diagonals, beside)
    assert converged
    assert found.dtype == diagonals.dtype
    assert (found.diff() >= 0).all()
    largest = expected.abs().amax(-1).clamp(min=1e-300)
    errors = (found.double() - expected).abs().amax(-1) / largest / torch.finfo(diagonals.dtype).eps
    assert errors.max() <= units * diagonals.shape[-1] ** 0.5


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 32, 129, 300])
@pytest.mark.parametrize("count", [1, 3, LANES, 2 * LANES + 5])
def test_random_matrices(count, size, dtype):
    check(torch.randn(count, size, dtype=dtype), torch.randn(count, size, dtype=dtype))


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("exponent", [-120, -60, 60, 120])
def test_far_from_one(exponent, dtype):
    diagonals, beside = torch.randn(2, 5, 40, dtype=dtype)
    expected, _ = eigenvalues(diagonals, beside)
    found, converged = eigenvalues(diagonals * 2.0**exponent, beside * 2.0**exponent)
    assert converged
    assert found.equal(expected * 2.0**exponent)


@pytest.mark.parametrize("dtype", TYPES)
def test_the_second_difference_has_its_closed_form(dtype):
    for size in (5, 64, 255):
        found, _ = eigenvalues(torch.full((1, size), 2.0, dtype=dtype), torch.full((1, size), -1.0, dtype=dtype))
        angles = torch.arange(1, size + 1, dtype=torch.float64) * torch.pi / (size + 1)
        torch.testing.assert_close(found[0].double(), 2 - 2 * angles.cos(), rtol=0, atol=40 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("dtype", TYPES)
def test_graded_matrices(dtype, reverse):
    grades = 10.0 ** -torch.linspace(0, 8 if dtype == torch.float32 else 30, 60, dtype=dtype)
    diagonals, beside = (grades * torch.rand(20, 60, dtype=dtype) for _ in range(2))
    check(diagonals.flip(-1) if reverse else diagonals, beside.flip(-1).roll(-1, -1) if reverse else beside)


@pytest.mark.parametrize("dtype", TYPES)
def test_matrices_in_several_blocks_each_in_places_of_its_own(dtype):
    diagonals, beside = torch.randn(2, 40, 50, dtype=dtype)
    beside *= torch.rand_like(beside) < torch.linspace(0, 1, 40, dtype=dtype)[:, None]  # from a diagonal matrix on
    check(diagonals, beside)
    assert eigenvalues(diagonals[:1], beside[:1] * 0)[0].equal(diagonals[:1].sort().values)


@pytest.mark.parametrize("dtype", TYPES)
def test_equal_and_nearly_equal_eigenvalues(dtype):
    wilkinson = torch.arange(-10.0, 11.0).abs().to(dtype)[None]  # pairs that agree in up to fifteen digits
    check(wilkinson, torch.ones_like(wilkinson))
    check(torch.ones(3, 30, dtype=dtype), torch.full((3, 30), torch.finfo(dtype).eps, dtype=dtype))
    glued = wilkinson.repeat(4, 6)
    check(glued, torch.ones_like(glued).masked_fill(torch.arange(1, 127) % 21 == 0, 1e-5))


@pytest.mark.parametrize("dtype", TYPES)
def test_zeros_and_what_comes_close(dtype):
    zeros = torch.zeros(2, 9, dtype=dtype)
    assert eigenvalues(zeros, zeros)[0].equal(zeros)
    check(zeros, torch.ones_like(zeros))
    check(zeros, torch.full_like(zeros, torch.finfo(dtype).tiny))


@pytest.mark.parametrize("dtype", TYPES)
def test_equal_bits_alone_and_in_any_company(dtype):
    sizes = (2, 31, 130)
    for size, scale in itertools.product(sizes, (1.0, 1e-6)):
        diagonals, beside = torch.randn(2, 2 * LANES + 3, size, dtype=dtype)
        beside *= torch.rand_like(beside) < 0.9
        diagonals[::3] *= scale
        alone = torch.cat([eigenvalues(d[None], e[None])[0] for d, e in zip(diagonals, beside, strict=True)])
        assert eigenvalues(diagonals, beside)[0].equal(alone)
        order = torch.randperm(len(diagonals))
        assert eigenvalues(diagonals[order], beside[order])[0].equal(alone[order])
        diagonals[5, 0] = torch.nan
        assert eigenvalues(diagonals, beside)[0][6:].equal(alone[6:])


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("dtype", TYPES)
def test_what_is_not_finite_comes_to_an_end_and_shows(dtype, bad):
    for place, row in itertools.product((0, 1), (0, 20, 48)):
        both = torch.randn(2, 3, 50, dtype=dtype)
        expected = eigenvalues(*both)[0]
        both[place, 1, row] = bad
        found, _ = eigenvalues(*both)
        assert not found[1].isfinite().all()
        assert found[[0, 2]].equal(expected[[0, 2]])


def test_what_is_given_stays_as_it_is():
    diagonals, beside = torch.randn(2, 3, 20)
    before = diagonals.clone(), beside.clone()
    eigenvalues(diagonals, beside)
    assert diagonals.equal(before[0])
    assert beside.equal(before[1])


def test_the_last_column_is_not_read():
    diagonals, beside = torch.randn(2, 3, 20)
    expected = eigenvalues(diagonals, beside)[0]
    beside[:, -1] = torch.nan
    assert eigenvalues(diagonals, beside)[0].equal(expected)


def test_it_says_so_if_an_iteration_does_not_converge():
    diagonals, beside = torch.randn(2, 1, 20).numpy()
    rows, found = np.zeros(21 * int(_tridiagonal._ROW), np.float32), np.empty_like(diagonals)
    iterate = _tridiagonal._iterate.py_func
    assert iterate(diagonals, beside, found, rows, np.float32(2.0**-48))
    limited = type(iterate)(iterate.__code__, {**iterate.__globals__, "_MOST_SWEEPS": 1})
    assert not limited(diagonals, beside, found, rows, np.float32(2.0**-48))


def test_the_engine_knows_how_many_go_together():
    assert eigensolvers.LANES == LANES


def in_a_new_process(code, cache, **settings):
    """What a program prints that compiles everything anew."""
    environment = os.environ | {"NUMBA_CACHE_DIR": str(cache), "PYTHONPATH": os.pathsep.join(sys.path)} | settings
    return subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)


def test_vector_instructions_are_used(tmp_path):
    """Only a look at the program tells that it is fast; no processor of today is without vectors of four numbers."""
    code = """
import torch
from lightning_farms.functional import _tridiagonal
_tridiagonal.eigenvalues(torch.ones(1, 3), torch.ones(1, 3))
print(*_tridiagonal._sweep.inspect_llvm().values())
"""
    assert re.search(r"fdiv <\d+ x float>", in_a_new_process(code, tmp_path).stdout)
    assert list(tmp_path.rglob("*.nbi"))  # kept for the next process


def test_compiling_is_silent_and_a_folder_that_cannot_be_written_does_no_harm(tmp_path):
    (tmp_path / "file").touch()
    code = """
import logging, torch
logging.basicConfig(level=logging.DEBUG)
from lightning_farms.functional import _lapack, checked_esd, eigensolvers
print(_lapack.has_numba(), checked_esd(torch.eye(100)[None], where=eigensolvers.Way.SCIPY).eigenvalues.sum().item())
"""
    done = in_a_new_process(code, tmp_path)
    assert (done.stdout, done.stderr) == ("True 100.0\n", "")
    done = in_a_new_process(code, tmp_path / "file")
    assert done.stdout in ("True 100.0\n", "False 100.0\n")
    assert done.stderr == ""


def test_without_compilation_it_is_as_if_numba_were_not_there(tmp_path):
    code = "from lightning_farms.functional import _lapack; print(_lapack.available(), _lapack.has_numba())"
    assert in_a_new_process(code, tmp_path, NUMBA_DISABLE_JIT="1").stdout == "True False\n"
