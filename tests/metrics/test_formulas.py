"""The errors against NumPy in float64 and against the figures that PDEBench's own program prints."""

import numpy as np
import pytest
import torch

from lightning_farms.metrics import conserved_rmse
from tests.metrics.field_oracles import CASES, conserved, fields

EVERY = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
PERS = pytest.mark.parametrize("per", [None, "channel", "frame", "frame_and_channel"])

# reference/other.json, key "pdebench_metrics": PDEBench's program on the arrays below, iLow 2, iHigh 5
PDEBENCH = {
    "rmse": 0.099565707,
    "nrmse": 0.044572826,
    "conserved": 0.0053169918,
    "max": 0.34287193,
    "boundary": 0.099906169,
    "fourier": [0.0080678696, 0.015280609, 0.020674301],
}
INITIAL_STEP = 2


def pdebench_arrays():
    prediction = (2 + np.random.RandomState(5).standard_normal((3, 16, 16, 8, 4))).astype(np.float32)
    target = (prediction + 0.1 * np.random.RandomState(6).standard_normal(prediction.shape)).astype(np.float32)
    return tuple(torch.from_numpy(array)[..., INITIAL_STEP:, :] for array in (prediction, target))


@pytest.mark.parametrize("case", [case for case in CASES if case.name in PDEBENCH], ids=lambda case: case.name)
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_pdebenchs_figures(case, batch_size):
    prediction, target = pdebench_arrays()
    expected = torch.tensor(PDEBENCH[case.name])
    torch.testing.assert_close(case.function(prediction, target, **case.settings), expected, rtol=1e-5, atol=0)
    metric = case.metric(**case.settings)
    for p, t in zip(prediction.split(batch_size), target.split(batch_size), strict=True):
        metric.update(p, t)
    torch.testing.assert_close(metric.compute(), expected, rtol=1e-5, atol=0)


@EVERY
@PERS
@pytest.mark.parametrize("shape", [(12, 12, 3, 4), (13, 12, 1, 1), (12, 19, 2, 3)])
def test_agrees_with_numpy(case, per, shape):
    """On square and other grids, even and odd, for channels and frames."""
    prediction, target = fields(shape=shape)
    expected = torch.from_numpy(np.asarray(case.expected(prediction, target, per)))
    settings = {**case.settings, "per": per}
    value = case.function(torch.from_numpy(prediction), torch.from_numpy(target), **settings)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value.double(), expected, rtol=2e-6, atol=0)
    doubles = torch.from_numpy(prediction).double(), torch.from_numpy(target).double()
    torch.testing.assert_close(case.function(*doubles, **settings), expected, rtol=1e-12, atol=0)
    metric = case.metric(**settings)
    metric.update(torch.from_numpy(prediction), torch.from_numpy(target))
    torch.testing.assert_close(
        metric.compute().double(), expected.squeeze() if expected.numel() == 1 else expected, rtol=2e-6, atol=0
    )


@EVERY
@pytest.mark.parametrize("scale", [1e-4, 1e5, 1e20])  # 1e20: of a plasma's number density, squares are beyond float32
def test_agrees_with_numpy_at_any_scale(case, scale):
    prediction, target = fields(scale=scale)
    tensors = torch.from_numpy(prediction), torch.from_numpy(target)
    expected = case.expected(prediction, target)
    metric = case.metric(**case.settings)
    metric.update(*tensors)
    np.testing.assert_allclose(metric.compute(), expected, rtol=2e-6)
    is_beyond_the_loss = case.name == "l2re" and scale > 1e16
    value = case.function(*tensors, **case.settings)
    np.testing.assert_allclose(value, np.nan if is_beyond_the_loss else expected, rtol=2e-6)


def test_totals_that_nearly_cancel():
    """A float32 sum over space is wrong in the fourth digit here."""
    error = np.random.RandomState(3).standard_normal((2, 128, 128, 1, 1))
    error = (error - error.mean((1, 2), keepdims=True) + 1e-6).astype(np.float32)
    value = conserved_rmse(torch.from_numpy(error), torch.zeros(error.shape))
    assert float(value) == pytest.approx(float(conserved(error.astype(np.float64), 0 * error).mean()), rel=1e-6)


@EVERY
def test_gradient(case):
    prediction, target = (torch.from_numpy(a[:2, :6, :7, :1, :1]).double() for a in fields())
    settings = {"low": 1, "high": 2} if case.settings else {}
    assert torch.autograd.gradcheck(lambda p: case.function(p, target, **settings), prediction.requires_grad_())
    perfect = target.clone().requires_grad_()
    case.function(perfect, target, **settings).sum().backward()
    torch.testing.assert_close(perfect.grad, torch.zeros_like(target))


@EVERY
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(case, dtype):
    prediction, target = (torch.from_numpy(a).to(dtype) for a in fields(scale=100.0))
    expected = case.expected(prediction.float().numpy(), target.float().numpy())
    value = case.function(prediction, target, **case.settings)
    assert value.dtype == torch.float32
    np.testing.assert_allclose(value, expected, rtol=2e-6)
    metric = case.metric(**case.settings)
    metric.update(prediction, target)
    np.testing.assert_allclose(metric.compute(), expected, rtol=2e-6)


@EVERY
def test_a_diverged_frame_is_nan_and_the_others_are_not(case):
    prediction, target = (torch.from_numpy(a) for a in fields())
    prediction[3, 2, 2, 1, 0] = float("nan")
    metric = case.metric(**case.settings, per="frame_and_channel")
    for p, t in zip(prediction.split(2), target.split(2), strict=True):
        metric.update(p, t)
    if case.name == "boundary":  # the point is inside
        assert metric.compute().isfinite().all()
        return
    wrong = metric.compute().isnan()
    expected = torch.zeros(3, 4, dtype=torch.bool)
    expected[1, 0] = True
    assert torch.equal(wrong, expected.expand_as(wrong))
