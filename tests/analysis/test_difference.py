"""What training added, W - W_base, against numpy; and the reasons where there is nothing to subtract."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_farms.analysis import LayerWeight, Selection, WholeMatrix, analyze
from lightning_farms.analysis._difference import differences
from lightning_farms.analysis.weights import NO_MATRICES


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def alpha_of(matrix):
    values = np.sort(np.linalg.svd(matrix, compute_uv=False) ** 2)
    tail = values[len(values) // 2 :]
    return 1 + len(tail) / np.log(tail / tail[0]).sum()


def linear_of(weight):
    module = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    module.weight = nn.Parameter(weight, requires_grad=False)
    return module


def numpy_of(weight):
    return weight.to(torch.complex128 if weight.is_complex() else torch.float64).numpy()


FLOATS = [torch.float32, torch.float64, torch.bfloat16, torch.float16]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("base_dtype", FLOATS)
def test_change_of_every_precision(dtype, base_dtype):
    """Half precision must not round the difference: it is far smaller than the weights."""
    start = torch.randn(20, 32)
    after, before = (start + 0.3 * torch.randn(20, 32)).to(dtype), start.to(base_dtype)
    (row,) = analyze(linear_of(after), WholeMatrix(), base=linear_of(before))
    difference = numpy_of(after) - numpy_of(before)
    assert row.alpha == pytest.approx(alpha_of(difference), abs=1e-4)
    assert row.frobenius_norm_squared == pytest.approx((difference**2).sum(), rel=1e-5)
    assert row.shape == (20, 32)


def test_complex_and_real():
    after, before = torch.randn(20, 20, dtype=torch.complex64), torch.randn(20, 20)
    (row,) = analyze(linear_of(after), WholeMatrix(), base=linear_of(before))
    assert row.alpha == pytest.approx(alpha_of(numpy_of(after) - numpy_of(before)), abs=1e-4)


def weight_of(name, matrices=None, reason="", shape=(12, 12)):
    return LayerWeight(name, "linear", shape, NO_MATRICES if matrices is None else matrices, (), reason)


def test_weights_are_left_alone_and_yielded_one_by_one():
    after, before = torch.randn(1, 12, 12), torch.randn(1, 12, 12)
    copies = after.clone(), before.clone()
    started = []

    def weights():
        for name in ("a", "b"):
            started.append(name)
            yield weight_of(name, after)

    found = differences(weights(), [weight_of("b", before), weight_of("a", before)])
    first = next(found)
    assert started == ["a"]
    assert first.matrices.equal(after - before)
    assert after.equal(copies[0])
    assert before.equal(copies[1])
    assert [weight.name for weight in found] == ["b"]


@pytest.mark.parametrize(
    ("weight", "base", "reason"),
    [
        (weight_of("a", torch.ones(1, 12, 12)), [], "the base has no such layer"),
        (weight_of("a", torch.ones(1, 12, 12)), [weight_of("b", torch.ones(1, 12, 12))], "the base has no such layer"),
        (
            weight_of("a", torch.ones(1, 12, 12)),
            [weight_of("a", torch.ones(1, 12, 13), shape=(12, 13))],
            r"the base's weight is of another shape, 12x13",
        ),
        (
            weight_of("a", torch.ones(1, 12, 12)),
            [weight_of("a", reason="on the meta device")],
            "in the base: on the meta",
        ),
        (weight_of("a", reason="excluded"), [weight_of("a", reason="other")], "excluded"),
    ],
)
def test_reasons(weight, base, reason):
    (change,) = differences([weight], base)
    assert change.reason.startswith(reason)
    assert change.matrices.numel() == 0
    assert change.shape == weight.shape


def test_reasons_reach_the_report_and_other_layers_are_untouched():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20), nn.Linear(20, 20))
    base = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 24), nn.Linear(20, 20, device="meta"))
    report = analyze(model, base=base)
    assert [row.status for row in report] == ["ok", "skipped", "skipped", "skipped"]
    assert report["1"].reason == "the base's weight is of another shape, 24x20"
    assert report["2"].reason.startswith("in the base: the weights are on the meta device")
    assert report["3"].reason == "the base has no such layer"
    assert report["0"] == analyze(model[:1], base=base[:1])["0"]


def test_a_pattern_may_name_a_layer_that_the_base_lacks():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    report = analyze(model, base=model[:1], selection=Selection(include=("1",)))
    assert report["1"].reason == "the base has no such layer"
    with pytest.raises(ValueError, match="'5' matches none"):
        analyze(model, base=model, selection=Selection(include=("5",)))


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool])
def test_integers_on_either_side_are_no_numbers_to_subtract(dtype):
    numbers, integers = linear_of(torch.randn(20, 20)), linear_of(torch.ones(20, 20).to(dtype))
    for model, base in ((numbers, integers), (integers, numbers), (integers, integers)):
        (row,) = analyze(model, base=base)
        assert row.status == "skipped"
        assert f"the weights are of type {dtype}" in row.reason


def test_no_change_is_skipped():
    model = nn.Sequential(nn.Linear(20, 20), nn.Linear(20, 20))
    before = copy.deepcopy(model.state_dict())
    report = analyze(model, base=model)
    assert {row.status for row in report} == {"skipped"}
    assert {row.reason for row in report} == {"unchanged from the base"}
    for name, value in model.state_dict().items():
        assert value.equal(before[name])


@pytest.mark.parametrize("meta", ["after", "before", "both"])
def test_shapes_alone_may_be_compared(meta):
    """Ranks plan from the shapes of sharded weights, which have no values until they are gathered."""
    after, before = (
        torch.ones(1, 12, 12, device="meta" if meta in (side, "both") else "cpu") for side in ("after", "before")
    )
    (change,) = differences([weight_of("a", after)], [weight_of("a", before)])
    assert change.matrices.is_meta
    assert change.matrices.shape == (1, 12, 12)
    assert not change.reason
