"""Plans from shapes and types alone: counts, costs, and the reasons for having none."""

import pytest
import torch

from lightning_farms.analysis import FARMS, LayerWeight, Status, WholeMatrix
from lightning_farms.analysis._engine.plan import MIN_EIGENVALUES, Plan, plan_layer
from lightning_farms.analysis.weights import NO_MATRICES
from lightning_farms.functional.submatrices import Windows


def weight_of(*shape, kind="linear", stored=None, dtype=torch.float32, reason=""):
    matrices = torch.empty(*shape, dtype=dtype, device="meta")
    return LayerWeight("w", kind, stored or shape[1:], matrices, (), reason)


@pytest.mark.parametrize(
    ("method", "shape", "expected"),
    [
        (FARMS(), (1, 64, 64), (1, 64)),
        (FARMS(), (9, 64, 32), (2, 2 * 9 * 32)),
        (FARMS(0.5), (1, 30, 30), (2, 2 * 15)),
        (FARMS(window=10, steps=3), (2, 40, 30), (9, 9 * 2 * 10)),
        (WholeMatrix(), (9, 64, 32), (1, 9 * 32)),
    ],
)
def test_counts(method, shape, expected):
    plan = plan_layer(weight_of(*shape), method)
    assert (plan.windows.number, plan.eigenvalue_count) == expected
    assert tuple(plan.matrices.shape) == shape


def test_eigenvalues_that_are_zero_in_any_case_are_not_counted():
    weight = weight_of(2, 60, 20)
    whole, low = (plan_layer(each, FARMS()) for each in (weight, weight._replace(rank=6)))
    assert (low.spectrum_size, low.eigenvalue_count, low.gram_size, low.cost) == (6, 3 * 2 * 6, 20, whole.cost)
    assert plan_layer(weight._replace(rank=50), FARMS()).spectrum_size == 20
    reason = "it has 6 eigenvalues (rank 6), fewer than the 10 that a fit takes"
    assert plan_layer(weight_of(1, 20, 20)._replace(rank=6), FARMS()).reason == reason


def test_values_are_not_looked_at():
    plan = plan_layer(weight_of(1, 5000, 5000, dtype=torch.complex128), FARMS())
    assert plan.cost == 4 * plan_layer(weight_of(1, 5000, 5000), FARMS()).cost - 3e6


def test_a_plan_without_values_is_the_same_and_holds_no_memory():
    plan = plan_layer(LayerWeight("w", "linear", (64, 20), torch.zeros(1, 64, 20), ()), FARMS())
    outline = plan.without_values()
    assert outline.matrices.is_meta
    assert outline.weight.matrices is NO_MATRICES
    assert (outline.cost, outline.eigenvalue_count) == (plan.cost, plan.eigenvalue_count)


def test_official_convolutions_are_planned_as_they_are_cut():
    plan = plan_layer(weight_of(9, 20, 64, kind="convolution", stored=(20, 64, 3, 3)), WholeMatrix(compat="official"))
    assert tuple(plan.matrices.shape) == (9, 64, 20)


def test_cost_is_that_of_all_windows_and_grows_with_their_size():
    def cost(size, number, matrices, is_complex=False):
        windows = Windows(size, size, tuple(range(number)), (0,))
        dtype = torch.complex64 if is_complex else torch.float32
        weight = weight_of(matrices, size, size, dtype=dtype)
        return Plan(weight, weight.matrices, windows).cost

    assert cost(32, 3, 5) == pytest.approx(15 * cost(32, 1, 1))
    assert cost(2048, 1, 1) == pytest.approx(8 * cost(1024, 1, 1), rel=0.01)
    assert cost(1024, 1, 1, is_complex=True) == pytest.approx(4 * cost(1024, 1, 1), rel=0.01)


@pytest.mark.parametrize(
    ("weight", "reason"),
    [
        (weight_of(1, 24, 24, reason="excluded"), "excluded"),
        (LayerWeight("w", "linear", (), NO_MATRICES, (), "no such thing"), "no such thing"),
        (weight_of(1, 24, 24, dtype=torch.int8), "the weights are of type torch.int8, not real or complex numbers"),
        (weight_of(1, 24, 24, dtype=torch.bool), "the weights are of type torch.bool, not real or complex numbers"),
        (weight_of(0, 24, 24), "the weight is empty"),
        (weight_of(1, 0, 24), "the weight is empty"),
        (weight_of(1, 24, 0), "the weight is empty"),
        (weight_of(7, 24, 1), "the matrix is a vector, 24 x 1"),
        (weight_of(1, 3, 3), f"it has 3 eigenvalues, fewer than the {MIN_EIGENVALUES} that a fit takes"),
        (weight_of(1, 9, 9, dtype=torch.complex64), "it has 9 eigenvalues, fewer than the 10 that a fit takes"),
    ],
)
@pytest.mark.parametrize("method", [FARMS(), WholeMatrix()])
def test_reasons(weight, reason, method):
    row = plan_layer(weight, method)
    assert (row.name, row.kind, row.status, row.reason) == ("w", "linear", Status.SKIPPED, reason)


@pytest.mark.parametrize("size", [9, 10])
def test_fewest_eigenvalues(size):
    assert isinstance(plan_layer(weight_of(1, size, size), FARMS()), Plan) is (size >= MIN_EIGENVALUES)
    assert isinstance(plan_layer(weight_of(2, size - 4, size - 4), FARMS()), Plan) is (2 * (size - 4) >= 10)


def test_official_takes_two_eigenvalues_and_vectors_but_not_one():
    method = WholeMatrix(compat="official")
    assert plan_layer(weight_of(1, 2, 2), method).eigenvalue_count == 2
    assert plan_layer(weight_of(1, 2, 1), method).reason == "it has 1 eigenvalue, fewer than the 2 that a fit takes"


@pytest.mark.parametrize(
    ("kind", "stored", "matrices"),
    [
        ("transposed convolution", (24, 24, 3, 3), (9, 24, 24)),
        ("convolution", (24, 24, 3), (3, 24, 24)),
        ("convolution", (48, 24, 3, 3), (18, 24, 24)),  # two groups
        ("parameter", (24, 24), (1, 24, 24)),
        ("linear", (2, 24, 24), (2, 24, 24)),
    ],
)
def test_official_refusals(kind, stored, matrices):
    weight = weight_of(*matrices, kind=kind, stored=stored)
    reason = plan_layer(weight, FARMS(1.0, 10, 3, compat="official")).reason
    assert reason == 'compat="official" covers Linear weights and those of Conv2d without groups only'
    assert isinstance(plan_layer(weight, FARMS()), Plan)


def test_official_window_that_does_not_fit_is_a_reason():
    assert "use a smaller `window`" in plan_layer(weight_of(1, 30, 8), FARMS(1.5, 10, 3, compat="official")).reason
