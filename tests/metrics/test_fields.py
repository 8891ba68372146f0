"""Arguments that the errors refuse, precision, and the shapes for channels and frames."""

import pytest
import torch

from lightning_farms.metrics import (
    NormalizedRMSE,
    RelativeL2Error,
    conserved_rmse,
    normalized_rmse,
    relative_l2_error,
    rmse,
    vrmse,
)
from lightning_farms.metrics._fields import accumulation_dtype
from tests.metrics.field_oracles import CASES

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)


@EVERY
@pytest.mark.parametrize(
    ("prediction", "target", "error", "match"),
    [
        (torch.ones(1, 2, 2, 1), torch.ones(1, 2, 2, 1), ValueError, r"`target` to be non-empty and of shape"),
        (torch.ones(0, 2, 2, 1, 1), torch.ones(0, 2, 2, 1, 1), ValueError, r"`target` to be non-empty"),
        (torch.ones(1, 2, 2, 1, 1), torch.ones(1, 2, 2, 2, 1), ValueError, r"`prediction` to be of the target's shape"),
        (torch.ones(1, 2, 2, 1, 1).int(), torch.ones(1, 2, 2, 1, 1), TypeError, r"`prediction`.*but got torch.int32"),
        (torch.ones(1, 2, 2, 1, 1), [1.0], TypeError, r"`target`.*but got list"),
        (torch.ones(1, 2, 2, 1, 1).cfloat(), torch.ones(1, 2, 2, 1, 1), TypeError, r"but got torch.complex64"),
    ],
)
def test_bad_input_is_refused(case, prediction, target, error, match):
    with pytest.raises(error, match=match):
        case.function(prediction, target)
    with pytest.raises(error, match=match):
        case.metric().update(prediction, target)


@EVERY
def test_unknown_word_for_per(case):
    with pytest.raises(ValueError, match=r"`per` to be None or one of \('channel', .*, but got 'frames'"):
        case.metric(per="frames")
    with pytest.raises(ValueError, match=r"`per` to be None or one of"):
        case.function(torch.ones(1, 32, 32, 1, 1), torch.ones(1, 32, 32, 1, 1), per="")


@pytest.mark.parametrize(
    "case", [case for case in CASES if case.name in ("l2re", "nrmse", "vrmse")], ids=lambda c: c[0]
)
@pytest.mark.parametrize("eps", [0, -1.0, float("nan")])
def test_bad_eps(case, eps):
    with pytest.raises(ValueError, match=r"`eps` to be positive, but got"):
        case.metric(eps=eps)
    with pytest.raises(ValueError, match=r"`eps` to be positive, but got"):
        case.function(torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1), eps=eps)


@pytest.mark.parametrize(
    ("metric", "constant", "scale"),
    [(RelativeL2Error, 0.0, 6.0 / 0.25), (NormalizedRMSE, 0.0, 3.0 / 0.25)],
)
def test_zero_target_gives_absolute_error_over_eps(metric, constant, scale):
    target = torch.full((1, 2, 2, 1, 2), constant)
    prediction = target + torch.tensor([0.0, 3.0])
    metric = metric(eps=0.25, per="channel")
    metric.update(prediction, target)
    torch.testing.assert_close(metric.compute(), torch.tensor([0.0, scale]))


def test_constant_target_gives_absolute_error_over_the_root_of_eps():
    target = torch.full((1, 2, 2, 1, 2), 7.0)
    value = vrmse(target + torch.tensor([0.0, 3.0]), target, eps=0.25, per="channel")
    torch.testing.assert_close(value, torch.tensor([0.0, 6.0]))


def test_a_perfect_channel_has_a_gradient_of_zero_and_a_nan_stays():
    prediction = torch.tensor([0.0, 4.0, float("nan")]).repeat(1, 2, 2, 1, 1).requires_grad_()
    errors = conserved_rmse(prediction, torch.zeros(1, 2, 2, 1, 3), per="channel")
    torch.testing.assert_close(errors, torch.tensor([0.0, 4.0, float("nan")]), equal_nan=True)
    errors[:2].sum().backward()
    torch.testing.assert_close(prediction.grad[0, :, :, 0, :2], torch.tensor([0.0, 0.25]).expand(2, 2, 2))


@pytest.mark.parametrize(("device", "dtype"), [("cpu", "float64"), ("cuda", "float64"), ("mps", "float32")])
def test_sums_are_in_float64_where_the_device_has_it(device, dtype):
    assert accumulation_dtype(torch.device(device)) == getattr(torch, dtype)


def test_float32_loses_no_digits_over_many_points():
    generator = torch.Generator().manual_seed(0)
    target = 1 + torch.rand(1, 128, 128, 11, 1, generator=generator)
    prediction = target + 0.1 * torch.randn(target.shape, generator=generator)
    for function in (relative_l2_error, rmse, normalized_rmse, vrmse):
        exact = float(function(prediction.double(), target.double()))
        assert float(function(prediction, target)) == pytest.approx(exact, rel=1e-6), function.__name__
