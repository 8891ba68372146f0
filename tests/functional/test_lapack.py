"""LAPACK through SciPy, with and without Numba: NumPy's eigenvalues, of equal bits everywhere, on one thread."""

import contextlib
import re
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import threadpoolctl
import torch

from lightning_farms import functional
from lightning_farms.analysis import LayerWeight, analyze, analyze_weights
from lightning_farms.functional import _lapack, _tridiagonal, checked_esd, eigensolvers, spectrum
from lightning_farms.functional._lapack import GramSpectra, available, gram_spectra, has_numba
from lightning_farms.functional._rows import row_norms
from lightning_farms.functional.eigensolvers import Problem, Rule, Way, gram_eigenvalues, one_blas_thread, way_of
from lightning_farms.functional.spectrum import checked_esds

TYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
WAYS = [Way.SCIPY, Way.NUMBA]


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def by_numpy(matrices):
    precise = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64)
    return torch.from_numpy(np.linalg.svd(precise.numpy(), compute_uv=False)[..., ::-1] ** 2)


@pytest.mark.parametrize("scale", [1e-38, 1e-30, 1e-9, 1.0, 1e8, 1e17, 1e30])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [1, 2, 5, 31, 64, 200])
@pytest.mark.parametrize("together", [False, True])
def test_spectra_and_norms_are_numpys(together, size, dtype, scale):
    matrices = torch.randn(3, size, size + 3, dtype=dtype) * scale
    found = gram_spectra([matrices], dtype, together=together)
    expected = by_numpy(matrices)
    tolerance = 6 * size**0.5 * torch.finfo(dtype).eps
    error = (found.eigenvalues - expected).abs().amax(-1) / expected.amax(-1)
    assert (error <= tolerance).all()
    assert (found.eigenvalues.diff() >= 0).all()
    torch.testing.assert_close(found.norm, expected.sum(-1), rtol=tolerance, atol=0)
    torch.testing.assert_close(found.gram_norm, expected.square().sum(-1) / expected.sum(-1), rtol=tolerance, atol=0)


@pytest.mark.parametrize("scale", [1e-300, 1e-200, 1e140])
@pytest.mark.parametrize("together", [False, True])
def test_far_from_one_in_double_precision(together, scale):
    matrices = torch.randn(2, 20, 30, dtype=torch.float64)
    expected, found = (gram_spectra([each], torch.float64, together=together) for each in (matrices, matrices * scale))
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other * scale * scale, rtol=1e-13, atol=0)


@pytest.mark.parametrize("together", [False, True])
def test_matrices_of_many_scales_in_one_call(together):
    matrices = torch.randn(5, 20, 20) * torch.tensor([1.0, 1e-25, 1.0, 1e25, 0.0]).view(-1, 1, 1)
    found = gram_spectra([matrices], torch.float32, together=together)
    for index, matrix in enumerate(matrices):
        assert [each[index].tolist() for each in found] == [
            each[0].tolist() for each in gram_spectra([matrix[None]], torch.float32, together=together)
        ]


@pytest.mark.parametrize("spikes", [0.0, 1.0, 1e4])
@pytest.mark.parametrize("rank", [1, 20, 100])
@pytest.mark.parametrize("dtype", TYPES)
def test_spectra_of_low_rank_and_with_spikes_are_numpys(dtype, rank, spikes):
    matrices = torch.randn(5, 100, rank, dtype=dtype) @ torch.randn(5, rank, 130, dtype=dtype)
    matrices[:, 3] *= 1 + spikes
    expected = by_numpy(matrices)
    for together in (False, True):
        found = gram_spectra([matrices], dtype, together=together).eigenvalues
        assert ((found - expected).abs().amax(-1) <= 60 * torch.finfo(dtype).eps * expected.amax(-1)).all()


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16, torch.float32])
def test_what_is_stored_is_worked_on_in_the_type_that_is_asked_for(stored):
    matrices = torch.randn(2, 40, 50).to(stored)
    assert gram_spectra([matrices], torch.float64)[0].equal(gram_spectra([matrices.double()], torch.float64)[0])
    assert gram_spectra([matrices.mT[:, :40]], torch.float32)[0].equal(
        gram_spectra([matrices.mT[:, :40].contiguous().float()], torch.float32)[0]
    )


def test_special_matrices():
    of_zeros = gram_spectra([torch.zeros(1, 30, 30)], torch.float32)
    assert all(not each.any() for each in of_zeros)
    assert gram_spectra([torch.eye(30)[None]], torch.float32)[0].equal(torch.ones(1, 30, dtype=torch.float64))
    found = gram_spectra([torch.arange(30.0).diag()[None]], torch.float32).eigenvalues
    torch.testing.assert_close(found, torch.arange(30.0, dtype=torch.float64)[None].square())
    conjugated = torch.randn(1, 9, 12, dtype=torch.complex64)
    assert gram_spectra([conjugated.conj()], torch.complex64)[0].equal(
        gram_spectra([conjugated.conj().resolve_conj()], torch.complex64)[0]
    )


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("size", [192, 201, 250])
@pytest.mark.parametrize("way", WAYS)
def test_equal_bits_wherever_a_matrix_lies_and_whoever_shares_the_call(way, size, dtype):
    matrices = torch.randn(3, size, size + 7, dtype=dtype)

    def esd(matrices):
        return checked_esd(matrices, where=way).eigenvalues

    with one_blas_thread(), ThreadPoolExecutor(3) as pool:
        together = esd(matrices)
        for offset in range(3):
            flat = torch.empty(matrices[1].numel() + offset, dtype=dtype)[offset:]
            moved = flat.view(size, size + 7).copy_(matrices[1])
            assert esd(moved).equal(together[1])
        assert esd(matrices.permute(1, 2, 0).contiguous().permute(2, 0, 1)).equal(together)
        for values, expected in zip(pool.map(esd, matrices), together, strict=True):
            assert values.equal(expected)


@pytest.mark.parametrize("way", [Way.CPU, *WAYS])
@pytest.mark.parametrize("dtype", TYPES)
def test_batches_together_have_the_bits_that_each_has_alone(dtype, way):
    batches = [torch.randn(count, 201, 207, dtype=dtype) for count in (1, 3, 2)]
    batches[1] = batches[1].permute(1, 2, 0).contiguous().permute(2, 0, 1)  # as a convolution's
    with one_blas_thread():
        together = checked_esds(batches, where=way)
        apart = [checked_esd(each, where=way) for each in batches]
    for field, joined in together._asdict().items():
        assert joined.equal(torch.cat([getattr(each, field) for each in apart]))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_what_is_given_stays_as_it_is(scale):
    matrices = torch.randn(2, 64, 64) * scale
    before = matrices.clone()
    gram_spectra([matrices], torch.float32)
    assert matrices.equal(before)


def test_what_was_in_the_work_space_before_is_of_no_effect():
    first, second = torch.randn(1, 64, 80), torch.randn(1, 64, 80)
    with one_blas_thread():
        expected = gram_spectra([second], torch.float32)
        space = _lapack._OF_THREAD.space
        for other in (first * 1e20, torch.full_like(first, torch.nan), first):
            with contextlib.suppress(torch.linalg.LinAlgError):
                gram_spectra([other], torch.float32)
            assert _lapack._OF_THREAD.space is space
            assert all(map(torch.equal, gram_spectra([second], torch.float32), expected))
        gram_spectra([first[:, :63]], torch.float32)
        assert _lapack._OF_THREAD.space is not space
        assert all(map(torch.equal, gram_spectra([second], torch.float32), expected))
    assert _lapack._OF_THREAD.space is None  # its memory is given back


@pytest.mark.parametrize("dtype", TYPES)
def test_row_norms_are_numpys(dtype):
    matrices = torch.randn(3, 20, 30, dtype=dtype)
    expected = torch.from_numpy(np.linalg.norm(matrices.numpy(), axis=-1))
    for given in (matrices, matrices.conj(), matrices.mT.contiguous().mT):
        torch.testing.assert_close(row_norms(given), expected)


def blas_threads():
    return {each["num_threads"] for each in threadpoolctl.threadpool_info() if each["user_api"] == "blas"}


def test_blas_has_one_thread_meanwhile_and_its_own_number_afterwards():
    gram_spectra([torch.eye(8)[None]], torch.float32)  # so that SciPy's library is there
    with threadpoolctl.threadpool_limits(3, "blas"):
        with one_blas_thread():
            assert blas_threads() == {1}
        assert blas_threads() == {3}


def test_what_does_not_converge_is_an_error(monkeypatch):
    with pytest.raises(torch.linalg.LinAlgError, match="did not converge"):
        gram_spectra([torch.full((1, 8, 8), torch.nan)], torch.float32)
    assert gram_spectra([torch.full((1, 8, 8), torch.nan)], torch.float32, together=True).eigenvalues.isnan().all()
    monkeypatch.setattr(_tridiagonal, "_MOST_SWEEPS", 1)
    monkeypatch.setattr(_tridiagonal, "_iterate", _tridiagonal._iterate.py_func)
    with pytest.raises(torch.linalg.LinAlgError, match="matrix of size 16 did not converge"):
        gram_spectra([torch.randn(1, 16, 16)], torch.float32, together=True)


def test_an_analysis_holds_blas_to_one_thread(monkeypatch):
    seen, model = [], torch.nn.Sequential(*[torch.nn.Linear(256, 256) for _ in range(3)])

    def counted(batches, dtype, *, together):
        seen.append(blas_threads())
        return gram_spectra(batches, dtype, together=together)

    monkeypatch.setattr(spectrum._lapack, "gram_spectra", counted)
    with threadpoolctl.threadpool_limits(3, "blas"):
        report = analyze(model, workers=2)
        assert blas_threads() == {3}
    assert seen == [{1}] * 2  # three windows, two workers
    assert {row.way for row in report} == {""}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_found_out(bad, way):
    matrices = torch.randn(2, 200, 200)
    matrices[0, 3, 4] = bad
    try:
        found = checked_esd(matrices, where=way)
    except torch.linalg.LinAlgError:
        return
    assert not found.eigenvalues[0].isfinite().all() or found.sum_error[0] != 0


@pytest.mark.parametrize("way", WAYS)
def test_a_right_spectrum_passes(way):
    matrices = torch.randn(3, 200, 260)
    good = checked_esd(matrices, where=way)
    assert not good.sum_error.any()
    assert not good.squares_error.any()


@pytest.mark.parametrize("field", GramSpectra._fields)
def test_whatever_is_wrong_is_found_out(field, monkeypatch):
    matrices = torch.randn(3, 200, 260)
    found = gram_spectra([matrices], torch.float32)
    wrong = found._replace(**{field: getattr(found, field) * 1.01})
    monkeypatch.setattr(spectrum._lapack, "gram_spectra", lambda *args, **options: wrong)
    errors = checked_esd(matrices, quick=True, where=Way.SCIPY)
    assert ((errors.sum_error > 0) | (errors.squares_error > 0)).all()


@pytest.mark.parametrize("way", WAYS)
def test_it_starts_from_the_matrices(way):
    with pytest.raises(ValueError, match="forms the Gram matrices itself"):
        gram_eigenvalues(torch.eye(3)[None], way)


@pytest.mark.parametrize(
    ("way", "dtype", "smallest"),
    [
        (Way.NUMBA, torch.float32, 96),
        (Way.NUMBA, torch.complex64, 96),
        (Way.SCIPY, torch.float32, 256),
        (Way.SCIPY, torch.complex64, 96),
    ],
)
def test_the_table_sends_middling_sizes_this_way(way, dtype, smallest, without):
    if way is Way.SCIPY:
        without("numba")
    problem = Problem("cpu", dtype, smallest, 1, (2, 13), one_blas_thread=True)
    assert way_of(problem) is way_of(problem, "host") is way_of(problem, "device") is way
    for other in ({"size": smallest - 1}, {"size": 2049}, {"differentiable": True}, {"one_blas_thread": False}):
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


@pytest.fixture
def without(monkeypatch):
    """Make a package as if it were not installed."""

    def missing(package):
        monkeypatch.setitem(sys.modules, package, None)
        monkeypatch.delitem(sys.modules, _tridiagonal.__name__, raising=False)
        monkeypatch.delattr(functional, "_tridiagonal", raising=False)
        available.cache_clear()
        has_numba.cache_clear()

    yield missing
    monkeypatch.undo()
    available.cache_clear()
    has_numba.cache_clear()


@pytest.mark.parametrize(("missing", "way"), [("scipy", Way.CPU), ("threadpoolctl", Way.CPU), ("numba", Way.SCIPY)])
def test_without_packages_the_others_do_it(missing, way, without):
    model = torch.nn.Linear(300, 300)
    expected = analyze(model)["weight"].alpha
    without(missing)
    assert way_of(Problem("cpu", torch.float32, 300, 1, (2, 13), one_blas_thread=True)) is way
    assert analyze(model)["weight"].alpha == pytest.approx(expected, abs=1e-5)


def test_the_message_names_the_extra(without):
    without("numba")
    with pytest.raises(ImportError, match=re.escape('pip install "lightning-farms[numba]"')):
        gram_spectra([torch.eye(3)[None]], torch.float32, together=True)
    without("scipy")
    with pytest.raises(ImportError, match=re.escape('pip install "lightning-farms[scipy]"')):
        gram_spectra([torch.eye(3)[None]], torch.float32)
