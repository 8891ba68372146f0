import pytest
import torch

from lightning_farms.data._normalization import ChannelStatistics, channel_statistics, restore, standardize


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_equals_the_statistics_of_all_values_at_once(offset):
    generator = torch.Generator().manual_seed(0)
    samples = [torch.randn(size, 7, 3, generator=generator) * torch.tensor([1.0, 5.0, 0.1]) for size in (1, 4, 9)]
    samples = [sample + offset for sample in samples]
    together = torch.cat(samples).double().reshape(-1, 3).numpy()
    statistics = channel_statistics(iter(samples))
    torch.testing.assert_close(statistics.mean, torch.from_numpy(together.mean(0)), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(statistics.std, torch.from_numpy(together.std(0)), rtol=1e-9, atol=0)


def test_no_samples():
    with pytest.raises(ValueError, match="`samples` to hold at least one tensor"):
        channel_statistics([])


def test_there_and_back():
    statistics = ChannelStatistics(torch.tensor([3.0, 5.0]).double(), torch.tensor([2.0, 0.0]).double())
    fields = torch.tensor([[7.0, 5.0], [-1.0, 6.0]])
    scaled = standardize(fields, statistics)
    assert scaled.tolist() == [[2.0, 0.0], [-2.0, 1.0]]
    assert torch.equal(restore(scaled, statistics), fields)
    assert scaled.dtype == fields.dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_keeps_the_fluctuations_of_a_large_mean(dtype):
    statistics = ChannelStatistics(torch.tensor([1e5]).double(), torch.tensor([2.0]).double())
    fields = torch.tensor([[1e5 - 2], [1e5 + 3]])
    restored = restore(standardize(fields, statistics).to(dtype), statistics)
    assert torch.equal(restored, fields)
