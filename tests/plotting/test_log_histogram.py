import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.tensorboard import SummaryWriter

from lightning_farms.plotting import log_histogram

NAN = float("nan")


@pytest.mark.parametrize("scale", ["log10", "linear"])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_counts_agree_with_numpy(scale, dtype):
    values = torch.from_numpy(np.random.RandomState(0).lognormal(0, 2, 500)).to(dtype)
    numbers = values.double().numpy()
    summary = log_histogram(values, bins=20, scale=scale)
    transform = np.log10 if scale == "log10" else np.asarray
    # bins are closed above here and below in numpy.histogram: mirror the axis
    counts, edges = np.histogram(-transform(numbers), 20)
    np.testing.assert_allclose(transform(np.array(summary.bucket_limits)), -edges[::-1][1:], rtol=1e-9, atol=1e-9)
    if dtype is torch.float64:  # bfloat16 values may lie on an edge
        assert summary.bucket_counts == counts[::-1].tolist()
    assert summary.num == sum(summary.bucket_counts) == 500
    assert (summary.min, summary.max) == (numbers.min(), numbers.max())
    assert summary.sum == pytest.approx(numbers.sum())
    assert summary.sum_squares == pytest.approx((numbers**2).sum())


@pytest.mark.parametrize(
    ("values", "limits", "counts"),
    [
        ([3.0], [3.0], [1]),
        ([3.0, 3.0, NAN, float("inf")], [3.0], [2]),
        ([0.0, 0.0], [0.0], [2]),
        ([-2.0, 0.0, 1.0, 100.0], [10.0, 100.0], [3, 1]),
        ([-4.0, -2.0, -1.0], [-2.5, -1.0], [1, 2]),
        ([0.0, 0.0, 4.0], [2.0, 4.0], [2, 1]),
    ],
)
def test_special_values(values, limits, counts):
    summary = log_histogram(values, bins=2)
    assert summary.bucket_limits == pytest.approx(limits)
    assert summary.bucket_counts == counts


def test_neighbouring_numbers_are_all_counted():
    values = [1.0, np.nextafter(1.0, 2.0), np.nextafter(1.0, 0.0)]
    summary = log_histogram(values, bins=5)
    assert sum(summary.bucket_counts) == 3
    assert len(summary.bucket_counts) == len(summary.bucket_limits)
    assert (np.diff(summary.bucket_limits) > 0).all()


def test_rounding_of_the_edges_loses_no_value():
    for largest in np.random.RandomState(0).uniform(1, 1000, 200):
        summary = log_histogram([1.0, largest], bins=3)
        assert summary.bucket_counts == [1, 0, 1]
        assert summary.bucket_limits[-1] == largest


def test_tensorboard_reads_it_back(tmp_path):
    values = np.random.RandomState(1).lognormal(0, 1, 300)
    summary = log_histogram([*values, NAN])
    with SummaryWriter(tmp_path) as writer:
        writer.add_histogram_raw("alpha", **summary._asdict(), global_step=7)
    events = EventAccumulator(str(tmp_path), size_guidance={"tensors": 0, "histograms": 0})
    events.Reload()
    (event,) = events.Histograms("alpha")
    stored = event.histogram_value
    assert event.step == 7
    assert stored.num == 300
    assert (stored.min, stored.max) == (values.min(), values.max())
    assert stored.sum == pytest.approx(values.sum())
    assert list(stored.bucket_limit) == summary.bucket_limits
    assert list(stored.bucket) == summary.bucket_counts


@pytest.mark.parametrize("values", [[], [NAN, float("inf")]])
def test_no_finite_value(values):
    with pytest.raises(ValueError, match=f"`values` to have a finite value, but got none among {len(values)}"):
        log_histogram(values)


def test_wrong_options():
    with pytest.raises(ValueError, match="`bins` to be at least 1, but got 0"):
        log_histogram([1.0], bins=0)
    with pytest.raises(ValueError, match=r"`scale` to be .* but got 'ln'"):
        log_histogram([1.0], scale="ln")
