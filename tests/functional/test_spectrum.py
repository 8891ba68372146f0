"""Eigenvalues against numpy's singular values."""

import numpy as np
import pytest
import torch

from lightning_farms.functional import esd, stable_rank


def draw(shape, dtype):
    random = np.random.RandomState(0)
    matrices = random.standard_normal(shape)
    if dtype.is_complex:
        matrices = matrices + 1j * random.standard_normal(shape)
    return torch.tensor(matrices).to(dtype)


def squared_singular_values(matrices):
    matrices = matrices.to(torch.complex128 if matrices.is_complex() else torch.float64).numpy()
    return torch.tensor(np.linalg.svd(matrices, compute_uv=False)[..., ::-1].copy() ** 2)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (3, 8), (8, 3), (2, 4, 6, 5), (0, 3, 4), (1, 7), (7, 1)])
def test_esd_is_squared_singular_values(shape, dtype):
    matrices = draw(shape, dtype)
    before = matrices.clone()
    got = esd(matrices)
    assert got.dtype == torch.float64
    torch.testing.assert_close(got, squared_singular_values(matrices), rtol=1e-12, atol=1e-13)
    torch.testing.assert_close(matrices, before, rtol=0, atol=0)


def test_esd_of_ill_conditioned_matrix_is_exact_to_rounding_of_the_largest():
    random = np.random.RandomState(0)
    left, right = (np.linalg.qr(random.standard_normal((60, 60)))[0] for _ in range(2))
    eigenvalues = np.logspace(-20, 0, 60)
    got = esd(torch.tensor(left * np.sqrt(eigenvalues) @ right))
    assert (got >= 0).all()
    np.testing.assert_allclose(got.numpy(), eigenvalues, rtol=1e-14, atol=1e-15)


def test_esd_under_autocast_stays_double():
    matrices = draw((20, 20), torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        got = esd(matrices)
    torch.testing.assert_close(got, esd(matrices), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.complex64])
@pytest.mark.parametrize("shape", [(1, 1), (5, 5), (3, 8), (2, 4, 60, 50), (0, 3, 4), (300, 260), (3, 256, 700)])
def test_quick_esd_is_within_its_error(shape, dtype):
    matrices = draw(shape, dtype)
    before = matrices.clone()
    got, expected = esd(matrices, quick=True), squared_singular_values(matrices)
    assert got.dtype == torch.float64
    assert (got.diff() >= 0).all()
    gram_norm = expected.square().sum(-1, keepdim=True).sqrt()
    assert ((got - expected).abs() <= 1e-6 * gram_norm).all()
    torch.testing.assert_close(matrices, before, rtol=0, atol=0)
    if got.numel() > 5:
        assert not torch.equal(got, esd(matrices))  # it really was in float32


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_quick_is_without_effect_on_double_precision(dtype):
    matrices = draw((3, 30, 20), dtype)
    assert esd(matrices, quick=True).equal(esd(matrices))


@pytest.mark.parametrize("precision", ["high", "medium"])
def test_quick_is_without_effect_where_products_are_inexact(precision):
    matrices = draw((3, 30, 20), torch.float32)
    torch.set_float32_matmul_precision(precision)
    try:
        got = esd(matrices, quick=True)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert got.equal(esd(matrices))


def test_quick_is_without_effect_where_the_precision_was_set_by_backend(monkeypatch):
    def refuses():
        raise RuntimeError("mix of the legacy and new APIs")

    matrices = draw((3, 30, 20), torch.float32)
    monkeypatch.setattr(torch, "get_float32_matmul_precision", refuses)
    assert esd(matrices, quick=True).equal(esd(matrices))


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize("size", [20, 255, 256, 257, 400])
def test_a_matrix_and_its_transpose_and_its_copies_have_the_same_bits(size, quick):
    matrices = draw((2, size, size + 20), torch.float32)
    expected = esd(matrices, quick=quick)
    assert esd(matrices.mT, quick=quick).equal(expected)
    assert esd(matrices.mT.contiguous(), quick=quick).allclose(expected, rtol=1e-4)
    assert esd(torch.cat([matrices[1:], matrices[1:]]), quick=quick).equal(expected[1:].repeat(2, 1))


def test_quick_esd_under_autocast_is_not_rounded_further():
    matrices = draw((20, 20), torch.float32)
    expected = esd(matrices, quick=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert esd(matrices, quick=True).equal(expected)


@pytest.mark.parametrize("shape", [(3,), (3, 0), (2, 0, 3)])
def test_esd_rejects_shape(shape):
    with pytest.raises(ValueError, match=r"Expected argument `matrices` to be \(\.\.\., m, n\), but got shape"):
        esd(torch.zeros(shape))


@pytest.mark.parametrize("dtype", [torch.int64, torch.int8, torch.bool])
def test_esd_rejects_dtype(dtype):
    with pytest.raises(TypeError, match=f"`matrices` to be real or complex, but got {dtype}"):
        esd(torch.zeros(3, 3, dtype=dtype))


def test_stable_rank_is_ratio_of_norms():
    matrices = np.random.RandomState(0).standard_normal((4, 9, 6))
    expected = np.linalg.norm(matrices, "fro", (1, 2)) ** 2 / np.linalg.norm(matrices, 2, (1, 2)) ** 2
    torch.testing.assert_close(stable_rank(esd(torch.tensor(matrices))), torch.tensor(expected), rtol=1e-12, atol=0)


def test_stable_rank_limits():
    assert stable_rank(torch.ones(7)).item() == 7
    assert stable_rank(torch.tensor([0.0, 0.0, 5.0])).item() == 1
    assert stable_rank(torch.zeros(3)).isnan()


@pytest.mark.parametrize("shape", [(), (0,), (3, 0)])
def test_stable_rank_rejects_shape(shape):
    with pytest.raises(ValueError, match=r"`eigenvalues` to be \(\.\.\., N\) with N >= 1, but got shape"):
        stable_rank(torch.zeros(shape))
