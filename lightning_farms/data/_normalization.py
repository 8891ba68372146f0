"""Mean and standard deviation of each channel, and the scaling by them."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor


class ChannelStatistics(NamedTuple):
    """Statistics of each channel.

    Args:
        mean: (C,), in the values' units.
        std: (C,), same units, at least 0; the variance is divided by the number of values.
    """

    mean: Tensor
    std: Tensor


def channel_statistics(samples: Iterable[Tensor]) -> ChannelStatistics:
    """Mean and standard deviation over all values of each channel, from one pass in double precision.

    The samples' own means m_i and sums of squared deviations S_i are combined with their counts n_i as
    m = (n_1 m_1 + n_2 m_2) / n and S = S_1 + S_2 + (m_2 - m_1)^2 n_1 n_2 / n, so one sample is in memory at a time and
    nothing cancels.

    Example:
        >>> channel_statistics([torch.tensor([[0.0, 5.0]]), torch.tensor([[2.0, 5.0], [4.0, 5.0]])]).mean.tolist()
        [2.0, 5.0]

    Reference:
        Chan, Golub, LeVeque, Algorithms for computing the sample variance (1983).
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for sample in samples:
        values = sample.double().flatten(end_dim=-2)
        own_mean = values.mean(0)
        own_squares = (values - own_mean).square().sum(0)
        total = count + len(values)
        difference = own_mean - mean
        squares = squares + own_squares + difference.square() * (count * len(values) / total)
        mean = mean + difference * (len(values) / total)
        count = total
    if count == 0:
        raise ValueError("Expected argument `samples` to hold at least one tensor, but got none.")
    return ChannelStatistics(mean, (squares / count).sqrt())


def standardize(fields: Tensor, statistics: ChannelStatistics) -> Tensor:
    """Subtract each channel's mean and divide by its standard deviation, or by 1 where that is 0."""
    mean, scale = _as(fields, statistics)
    return (fields - mean) / scale


def restore(fields: Tensor, statistics: ChannelStatistics) -> Tensor:
    """Undo `standardize`, in at least float32: half precision loses fluctuations around a large mean."""
    fields = fields.to(torch.promote_types(fields.dtype, torch.float32))
    mean, scale = _as(fields, statistics)
    return fields * scale + mean


def _as(fields: Tensor, statistics: ChannelStatistics) -> tuple[Tensor, Tensor]:
    scale = torch.where(statistics.std > 0, statistics.std, 1.0)
    return statistics.mean.to(fields), scale.to(fields)
