import pytest
import torch
from scipy import stats

from lightning_farms.data.noise import add_noise


def noise(seed=(0, 0, 0), amplitude=0.5, shape=(32, 32, 10, 2)):
    scale = torch.tensor([3.0, 100.0])
    fields = torch.where(torch.arange(shape[0])[:, None, None, None] % 2 == 0, 1.0, -1.0) * scale.expand(shape)
    return (add_noise(fields, amplitude, seed=seed) - fields) / scale


def test_is_gaussian_in_units_of_each_channels_root_mean_square():
    for channel in range(2):
        assert stats.kstest(noise()[..., channel].flatten().numpy(), "norm", args=(0, 0.5)).pvalue > 0.01
    first, second = noise().flatten(end_dim=-2).T
    assert abs(torch.corrcoef(torch.stack((first, second)))[0, 1]) < 0.05


def test_depends_on_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    expected = noise(seed=(1, 2, 3))
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(noise(seed=(1, 2, 3)), expected)
    others = [(1, 2, 4), (1, 3, 3), (2, 2, 3), (1, 2), (1, 2, 3, 0), (0, 0), (0, 0, 0)]
    drawn = [expected, *(noise(seed=seed) for seed in others)]
    assert all(not torch.equal(a, b) for i, a in enumerate(drawn) for b in drawn[:i])


def test_amplitude_zero_leaves_the_fields():
    fields = torch.ones(2, 2, 1, 1)
    assert add_noise(fields, 0.0, seed=(0,)) is fields


@pytest.mark.parametrize("amplitude", [0.1, 2.0])
def test_grows_with_the_amplitude(amplitude):
    torch.testing.assert_close(noise(amplitude=amplitude), noise(amplitude=1.0) * amplitude, rtol=1e-3, atol=1e-4)
