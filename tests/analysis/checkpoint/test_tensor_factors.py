"""Fourier layers whose complex weights a file holds as tensorly-torch does: factors, or pairs of real numbers."""

import pytest
import torch

from lightning_farms.analysis import checkpoint_weights

SHAPE, RANK = (7, 6, 3, 5), (4, 3, 2, 2)


def normal(*shape):
    return torch.randn(shape, dtype=torch.complex64, generator=torch.Generator().manual_seed(sum(shape)))


def tucker():
    core, factors = normal(*RANK), [normal(size, rank) for size, rank in zip(SHAPE, RANK, strict=True)]
    return {"core": core}, factors, torch.einsum("ABCD,aA,bB,cC,dD->abcd", core, *factors)


def cp():
    weights, factors = normal(9), [normal(size, 9) for size in SHAPE]
    return {"weights": weights}, factors, torch.einsum("r,ar,br,cr,dr->abcd", weights, *factors)


def train():
    ranks = (1, 4, 5, 3, 1)
    factors = [normal(ranks[place], size, ranks[place + 1]) for place, size in enumerate(SHAPE)]
    return {}, factors, torch.einsum("AaB,BbC,CcD,DdE->abcd", *factors)


@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize("factorised", [tucker, cp, train])
def test_factors_are_their_product(factorised, pairs):
    first, factors, whole = factorised()
    held = first | {f"factors.factor_{place}": factor for place, factor in enumerate(factors)}
    stored = {f"conv.weight.{part}": torch.view_as_real(tensor) if pairs else tensor for part, tensor in held.items()}
    (weight,) = checkpoint_weights({**stored, "conv.bias": torch.zeros(6, 1, 1)})
    assert (weight.name, weight.shape, weight.layout, weight.reason) == ("conv", SHAPE, "iobb", "")
    torch.testing.assert_close(weight.matrices, whole.movedim((0, 1), (-2, -1)).reshape(15, 7, 6))
    (outline,) = checkpoint_weights(stored, values=False)
    assert outline.matrices.shape == weight.matrices.shape


def test_real_pairs_are_complex():
    whole = normal(*SHAPE)
    (weight,) = checkpoint_weights({"conv.weight.tensor": torch.view_as_real(whole)})
    torch.testing.assert_close(weight.matrices, whole.movedim((0, 1), (-2, -1)).reshape(15, 7, 6))


def test_factors_of_a_real_tensor_stay_as_they_are():
    stored = {f"fc.weight.factors.factor_{place}": torch.randn(12, 8) for place in range(2)}
    names = [weight.name for weight in checkpoint_weights({**stored, "fc.weight.weights": torch.ones(8)})]
    assert names == ["fc.weight.factors.factor_0", "fc.weight.factors.factor_1"]


def test_a_missing_factor_costs_one_row():
    stored = {f"conv.weight.factors.factor_{place}": normal(12, 8) for place in (0, 2)}
    weights = list(checkpoint_weights({**stored, "conv.weight.core": normal(8, 8, 8), "fc.weight": torch.randn(4, 4)}))
    assert [(weight.name, bool(weight.reason)) for weight in weights] == [("conv", True), ("fc", False)]


def test_a_separable_layer_is_told_by_its_bias():
    bias = torch.zeros(24, 1, 1)
    (separable,) = checkpoint_weights({"conv.weight": normal(24, 8, 5), "conv.bias": bias})
    assert separable.reason.startswith("a separable spectral convolution")
    (sphere,) = checkpoint_weights({"conv.weight": normal(24, 24, 5), "conv.bias": bias})
    assert (sphere.matrices.shape, sphere.reason) == ((5, 24, 24), "")
    assert "separable" in sphere.remark
    (dense,) = checkpoint_weights({"conv.weight": normal(24, 24, 8, 5), "conv.bias": bias})
    assert (dense.matrices.shape, dense.reason, dense.remark) == ((40, 24, 24), "", "")
