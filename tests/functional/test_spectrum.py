"""Eigenvalues against numpy's singular values."""

import itertools

import numpy as np
import pytest
import torch

from lightning_farms.functional import esd


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
    assert got.is_contiguous()
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


def at_address(matrices, entries):
    """The same numbers, so many entries after a 64-byte boundary."""
    storage = torch.zeros(matrices.numel() + entries, dtype=matrices.dtype)
    shifted = storage[entries:].view(matrices.shape)
    assert shifted.data_ptr() % 64 == entries * matrices.element_size() % 64
    return shifted.copy_(matrices)


def ways_to_hand_over(matrix, others):
    """How, and matrices of which the second one and every other one after it is this matrix."""
    batch = torch.stack([others[0], matrix, others[1], matrix])
    yield "in a batch", batch[:2]
    yield "in a nested batch at a shifted address", at_address(batch, 1).unflatten(0, (2, 2))
    yield "in a batch of views of larger matrices", torch.nn.functional.pad(batch[:2], (1, 2, 3, 0))[:, 3:, 1:-2]
    yield "alone, stored transposed", matrix.mT.contiguous().mT
    for entries in (1, 2, 3):
        yield f"alone, shifted by {entries}", at_address(matrix, entries)


SIZES = [*range(1, 73), *range(75, 141, 5)]  # 5 and 16 have no factor in common: remainders of all vectors' lengths


@pytest.mark.parametrize("sizes", [SIZES, pytest.param(range(73, 141), marks=pytest.mark.slow)], ids=["some", "large"])
@pytest.mark.parametrize(
    ("dtype", "quick"),
    [
        (torch.float32, False),
        (torch.float32, True),
        (torch.float64, False),
        (torch.complex64, False),
        (torch.complex64, True),
        (torch.complex128, False),
    ],
)
def test_same_bits_alone_in_batches_and_at_shifted_addresses(dtype, quick, sizes):
    differ = {}
    for size, longer in itertools.product(sizes, [0, 7]):
        *others, matrix = draw((3, size, size + longer), dtype)
        expected = esd(matrix.clone(), quick=quick)
        for way, matrices in ways_to_hand_over(matrix, others):
            got = esd(matrices, quick=quick).reshape(-1, size)
            if any(not each.equal(expected) for each in (got[1::2] if len(got) > 1 else got)):
                differ.setdefault(way, []).append((size, size + longer))
    assert differ == {}


def test_zeros_of_padding_take_no_eigenvalue_away():
    """Of odd sizes, and of rank one and zero, where the matrix has zeros of its own."""
    for size in (1, 2, 3, 5, 6, 7, 9, 33):
        vector = torch.arange(1.0, size + 1, dtype=torch.float64)
        got = esd(torch.stack([torch.outer(vector, vector), torch.zeros(size, size), torch.eye(size)]))
        expected = torch.zeros(3, size, dtype=torch.float64)
        expected[0, -1], expected[2] = vector.square().sum() ** 2, 1
        torch.testing.assert_close(got, expected, rtol=1e-14, atol=1e-14 * expected.max().item())


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


@pytest.mark.parametrize("scale", [1e-200, 1e-160, 1e160, 1e200])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128])
def test_entries_whose_squares_float64_does_not_hold_are_refused(scale, dtype):
    matrices = torch.randn(3, 30, 40, dtype=dtype)
    matrices[1] *= scale
    with pytest.raises(ValueError, match=r"whose squares float64 holds, but got a matrix with .*e[+-]?(199|200|16|15)"):
        esd(matrices)
    esd(matrices[[0, 2]])


def test_quick_spectra_of_entries_whose_squares_float32_does_not_hold():
    matrices = torch.randn(4, 30, 40) * torch.tensor([1.0, 0.0, 1e-25, 1e25]).view(-1, 1, 1)
    torch.testing.assert_close(esd(matrices, quick=True), esd(matrices), rtol=0, atol=0)


def test_alphas_at_the_ends_of_the_range_that_is_not_refused():
    matrices = torch.randn(30, 40, dtype=torch.float64)
    expected = esd(matrices)
    for scale in (2.0**-470, 2.0**500):
        torch.testing.assert_close(esd(matrices * scale) / scale**2, expected, rtol=1e-12, atol=0)
