"""The errors of fields in NumPy and float64, written from PDEBench's and DPOT's definitions; arrays to try them on."""

from typing import NamedTuple

import numpy as np

from lightning_farms import metrics


def l2re(prediction, target, over_frames):
    """(frames or 1, channels); sums written out with loops over sample and channel."""
    values = np.zeros((len(target), 1 if over_frames else target.shape[3], target.shape[4]))
    for b in range(len(target)):
        for c in range(target.shape[-1]):
            for f in range(values.shape[1]):
                p, t = prediction[b, ..., c], target[b, ..., c]
                if not over_frames:
                    p, t = p[..., f], t[..., f]
                values[b, f, c] = np.sqrt(((p - t) ** 2).sum() / (t**2).sum())
    return values.mean(0)


def rmse(prediction, target):
    return np.sqrt(((prediction - target) ** 2).mean((1, 2))).mean(0)


def nrmse(prediction, target):
    return (np.sqrt(((prediction - target) ** 2).mean((1, 2))) / np.sqrt((target**2).mean((1, 2)))).mean(0)


def vrmse(prediction, target):
    return (np.sqrt(((prediction - target) ** 2).mean((1, 2)) / (target.var((1, 2)) + 1e-7))).mean(0)


def conserved(prediction, target):
    totals = prediction.sum((1, 2)) - target.sum((1, 2))
    return np.sqrt((totals**2).mean(0)) / (target.shape[1] * target.shape[2])


def maximum(prediction, target):
    return np.abs(prediction - target).max((0, 1, 2))


def boundary(prediction, target):
    square = (prediction - target) ** 2
    edges = square[:, 0].sum(1) + square[:, -1].sum(1) + square[:, :, 0].sum(1) + square[:, :, -1].sum(1)
    return np.sqrt(edges / (2 * target.shape[1] + 2 * target.shape[2])).mean(0)


def fourier(prediction, target, low=2, high=5):
    """(3, frames, channels), with loops over the modes."""
    nx, ny = target.shape[1:3]
    energy = np.abs(np.fft.fft2(prediction - target, axes=(1, 2))) ** 2
    bins = np.zeros((min(nx, ny) // 2, *target.shape[3:]))
    for i in range(nx // 2):
        for j in range(ny // 2):
            k = int(np.sqrt(i * i + j * j))
            if k < len(bins):
                bins[k] += energy[:, i, j].mean(0)
    bins = np.sqrt(bins) / (nx * ny)
    return np.stack([bins[:low].mean(0), bins[low:high].mean(0), bins[high:].mean(0)])


class Case(NamedTuple):
    """One error.

    Attributes:
        name: short.
        metric: makes the class, with further keywords.
        function: the functional form, with further keywords.
        oracle: NumPy's (..., frames, channels), or (..., 1, channels).
        settings: keywords of both.
    """

    name: str
    metric: type
    function: object
    oracle: object
    settings: dict

    def expected(self, prediction, target, per=None):
        prediction, target = np.asarray(prediction, np.float64), np.asarray(target, np.float64)
        if self.name == "l2re":
            values = self.oracle(prediction, target, per in (None, "channel"))
        else:
            values = self.oracle(prediction, target)
        if per == "frame_and_channel":
            return values
        return values.mean({None: (-2, -1), "channel": -2, "frame": -1}[per])


PERS = (None, "channel", "frame", "frame_and_channel")
CASES = [
    Case("l2re", metrics.RelativeL2Error, metrics.relative_l2_error, l2re, {}),
    Case("rmse", metrics.RMSE, metrics.rmse, rmse, {}),
    Case("nrmse", metrics.NormalizedRMSE, metrics.normalized_rmse, nrmse, {}),
    Case("vrmse", metrics.VRMSE, metrics.vrmse, vrmse, {}),
    Case("conserved", metrics.ConservedRMSE, metrics.conserved_rmse, conserved, {}),
    Case("max", metrics.MaxError, metrics.max_error, maximum, {}),
    Case("boundary", metrics.BoundaryRMSE, metrics.boundary_rmse, boundary, {}),
    Case("fourier", metrics.FourierRMSE, metrics.fourier_rmse, fourier, {"low": 2, "high": 5}),
]


def fields(samples=7, scale=1.0, shape=(13, 12, 3, 4), seed=1):
    """Prediction and target in float32; the samples' errors differ widely, so that a mean of means shows."""
    rng = np.random.RandomState(seed)
    target = (2 + rng.standard_normal((samples, *shape))) * scale
    noise = rng.standard_normal(target.shape) * np.linspace(0.01, 2.0, samples).reshape(-1, 1, 1, 1, 1) * scale
    return (target + noise + 0.1 * scale).astype(np.float32), target.astype(np.float32)


def add_in_batches(metric, sizes, prediction, target):
    for p, t in zip(prediction.split(sizes), target.split(sizes), strict=True):
        metric.update(p, t)
