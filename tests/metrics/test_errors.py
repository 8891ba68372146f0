"""Field errors against NumPy in float64, PDEBench's own figure, and themselves under other batchings."""

import os
import pickle

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from lightning_farms.metrics import NormalizedRMSE, RelativeL2Error, normalized_rmse, relative_l2_error

# pdebench_metrics of shared/reference/other.json: PDEBench's program on these two arrays, initial_step 2.
PDEBENCH_NRMSE = 0.044572826
PDEBENCH_INITIAL_STEP = 2


def numpy_l2re(prediction, target):
    """Sums written out with loops over sample and channel, independent of the code under test."""
    values = []
    for p, t in zip(prediction.astype(np.float64), target.astype(np.float64), strict=True):
        for c in range(t.shape[-1]):
            values.append(np.sqrt(((p[..., c] - t[..., c]) ** 2).sum() / (t[..., c] ** 2).sum()))
    return np.mean(values)


def numpy_nrmse(prediction, target):
    prediction, target = prediction.astype(np.float64), target.astype(np.float64)
    error = np.sqrt(((prediction - target) ** 2).mean(axis=(1, 2)))
    return (error / np.sqrt((target**2).mean(axis=(1, 2)))).mean()


PAIRS = [
    pytest.param(RelativeL2Error, relative_l2_error, numpy_l2re, id="l2re"),
    pytest.param(NormalizedRMSE, normalized_rmse, numpy_nrmse, id="nrmse"),
]


def fields(samples=7, scale=1.0):
    rng = np.random.RandomState(1)
    target = (2 + rng.standard_normal((samples, 5, 6, 3, 4))).astype(np.float32) * np.float32(scale)
    noise = rng.standard_normal(target.shape) * np.linspace(0.01, 2.0, samples).reshape(-1, 1, 1, 1, 1) * scale
    return (target + noise).astype(np.float32), target


def pdebench_arrays():
    prediction = (2 + np.random.RandomState(5).standard_normal((3, 16, 16, 8, 4))).astype(np.float32)
    target = (prediction + 0.1 * np.random.RandomState(6).standard_normal(prediction.shape)).astype(np.float32)
    return prediction, target


@pytest.mark.parametrize(("metric_class", "function", "oracle"), PAIRS)
@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e5])
def test_agrees_with_numpy_at_any_scale(metric_class, function, oracle, scale):
    prediction, target = fields(scale=scale)
    value = function(torch.from_numpy(prediction), torch.from_numpy(target))
    assert float(value) == pytest.approx(oracle(prediction, target), rel=1e-6)


@pytest.mark.parametrize(("metric_class", "function", "oracle"), PAIRS)
@pytest.mark.parametrize("sizes", [(7,), (1, 6), (3, 3, 1), (1,) * 7])
def test_batching_does_not_matter(metric_class, function, oracle, sizes):
    prediction, target = fields()
    metric = metric_class()
    for p, t in zip(torch.from_numpy(prediction).split(sizes), torch.from_numpy(target).split(sizes), strict=True):
        metric.update(p, t)
    assert float(metric.compute()) == pytest.approx(oracle(prediction, target), rel=1e-6)
    assert metric.total.dtype == torch.float64


def test_nrmse_is_pdebenchs():
    prediction, target = (torch.from_numpy(a)[..., PDEBENCH_INITIAL_STEP:, :] for a in pdebench_arrays())
    assert float(normalized_rmse(prediction, target)) == pytest.approx(PDEBENCH_NRMSE, rel=1e-6)
    metric = NormalizedRMSE()
    for p, t in zip(prediction, target, strict=True):
        metric.update(p[None], t[None])
    assert float(metric.compute()) == pytest.approx(PDEBENCH_NRMSE, rel=1e-6)


@pytest.mark.parametrize(("metric_class", "function", "oracle"), PAIRS)
def test_float64_accumulation_survives_many_samples(metric_class, function, oracle):
    """A float32 sum of 200,000 equal terms drifts by 1e-4; the float64 one does not."""
    target = torch.ones(20_000, 1, 1, 1, 1)
    metric = metric_class()
    for _ in range(10):
        metric.update(1.1 * target, target)
    assert float(metric.compute()) == pytest.approx(float(torch.tensor(1.1) - 1), rel=2e-7)


@pytest.mark.parametrize(("metric_class", "function", "oracle"), PAIRS)
def test_zero_target_gives_absolute_error_over_eps(metric_class, function, oracle):
    prediction, target = torch.zeros(1, 2, 2, 1, 2), torch.zeros(1, 2, 2, 1, 2)
    assert float(function(prediction, target)) == 0.0
    prediction[..., 1] = 3.0
    norm = 6.0 if function is relative_l2_error else 3.0
    assert float(function(prediction, target, eps=0.5)) == pytest.approx(norm / 0.5 / 2)
    metric = metric_class(eps=0.5)
    metric.update(prediction, target)
    assert float(metric.compute()) == pytest.approx(norm / 0.5 / 2)


@pytest.mark.parametrize(("metric_class", "function", "oracle"), PAIRS)
def test_gradient(metric_class, function, oracle):
    prediction, target = (torch.from_numpy(a[:2, :3, :3]).double() for a in fields())
    assert torch.autograd.gradcheck(lambda p: function(p, target), prediction.requires_grad_())
    perfect = target.clone().requires_grad_()
    function(perfect, target).backward()
    torch.testing.assert_close(perfect.grad, torch.zeros_like(target))


@pytest.mark.parametrize(("metric_class", "function", "oracle"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(metric_class, function, oracle, dtype):
    prediction, target = (torch.from_numpy(a).to(dtype) for a in fields(scale=100.0))
    value = function(prediction, target)
    assert value.dtype == torch.float32
    assert float(value) == pytest.approx(oracle(prediction.float().numpy(), target.float().numpy()), rel=1e-6)


def _rank(rank, path, store):
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    prediction, target = (torch.from_numpy(a) for a in fields())
    mine = slice(0, 2) if rank == 0 else slice(2, 7)
    values = []
    for metric_class in (RelativeL2Error, NormalizedRMSE):
        metric = metric_class()
        metric.update(prediction[mine], target[mine])
        values.append(float(metric.compute()))
    with open(os.path.join(path, f"{rank}.pkl"), "wb") as file:
        pickle.dump(values, file)
    dist.destroy_process_group()


def test_two_processes_agree_with_one(tmp_path):
    mp.spawn(_rank, args=(str(tmp_path), str(tmp_path / "store")), nprocs=2)
    expected = [numpy_l2re(*fields()), numpy_nrmse(*fields())]
    for rank in range(2):
        values = pickle.loads((tmp_path / f"{rank}.pkl").read_bytes())
        assert values == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("metric_class", "function", "oracle"), PAIRS)
@pytest.mark.parametrize(
    ("prediction", "target", "error", "match"),
    [
        (torch.ones(1, 2, 2, 1), torch.ones(1, 2, 2, 1), ValueError, r"`target` to be non-empty and of shape"),
        (torch.ones(0, 2, 2, 1, 1), torch.ones(0, 2, 2, 1, 1), ValueError, r"`target` to be non-empty"),
        (torch.ones(1, 2, 2, 1, 1), torch.ones(1, 2, 2, 2, 1), ValueError, r"`prediction` to be of the target's shape"),
        (torch.ones(1, 2, 2, 1, 1).int(), torch.ones(1, 2, 2, 1, 1), TypeError, r"`prediction`.*but got torch.int32"),
        (torch.ones(1, 2, 2, 1, 1), [1.0], TypeError, r"`target`.*but got list"),
    ],
)
def test_bad_input_is_refused(metric_class, function, oracle, prediction, target, error, match):
    with pytest.raises(error, match=match):
        function(prediction, target)
    with pytest.raises(error, match=match):
        metric_class().update(prediction, target)


@pytest.mark.parametrize(("metric_class", "function", "oracle"), PAIRS)
def test_bad_eps_and_no_samples(metric_class, function, oracle):
    with pytest.raises(ValueError, match=r"`eps` to be positive, but got 0"):
        metric_class(eps=0)
    with pytest.raises(ValueError, match=r"`eps` to be positive, but got nan"):
        function(torch.ones(1, 1, 1, 1, 1), torch.ones(1, 1, 1, 1, 1), eps=float("nan"))
    metric = metric_class()
    with (
        pytest.warns(UserWarning, match="before the ``update``"),
        pytest.raises(ValueError, match="at least one sample"),
    ):
        metric.compute()
