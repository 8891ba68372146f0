import pytest
import torch
from scipy import stats

from lightning_farms.common.noise import add_noise
from lightning_farms.common.seeding import seeded_generator

SIZES = torch.tensor([[3.0, 100.0], [1.0, 0.01]])  # of two samples' two channels


def noise(amplitude=0.5, seed=0, samples=(0, 1)):
    """In units of the fields' root mean square, (samples, X, Y, frames, channels)."""
    signs = torch.where(torch.arange(32) % 2 == 0, 1.0, -1.0)[:, None, None, None]
    sizes = SIZES[list(samples)][:, None, None, None]
    fields = signs * sizes.expand(-1, 32, 32, 10, 2)
    return (add_noise(fields, amplitude, seeded_generator((seed,))) - fields) / sizes


def test_is_gaussian_in_units_of_each_samples_and_channels_root_mean_square():
    for drawn in noise().movedim(-1, 1).flatten(2).flatten(0, 1):
        assert stats.kstest(drawn.numpy(), "norm", args=(0, 0.5)).pvalue > 0.01
    correlations = torch.corrcoef(noise().movedim(-1, 1).flatten(2).flatten(0, 1)) - torch.eye(4)
    assert correlations.abs().max() < 0.05


def test_one_sample_alone():
    fields = torch.rand(8, 8, 3, 2, generator=torch.Generator().manual_seed(1))
    alone, as_batch = (add_noise(each, 0.1, seeded_generator((0,))) for each in (fields, fields[None]))
    assert torch.equal(alone, as_batch[0])


def test_depends_on_the_generator_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    expected = noise()
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(noise(), expected)
    assert not torch.equal(noise(seed=1), expected)


def test_amplitude_zero_leaves_the_fields():
    fields, generator = torch.ones(2, 2, 1, 1), torch.Generator()
    before = generator.get_state()
    assert add_noise(fields, 0.0, generator) is fields
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("amplitude", [0.1, 2.0])
def test_grows_with_the_amplitude(amplitude):
    torch.testing.assert_close(noise(amplitude=amplitude), noise(amplitude=1.0) * amplitude, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_keeps_the_type(dtype):
    assert add_noise(torch.ones(2, 2, 1, 1, dtype=dtype), 0.1, torch.Generator()).dtype == dtype


def test_half_precision_squares_do_not_overflow():
    fields = torch.full((8, 8, 3, 1), 1000.0, dtype=torch.float16)
    noisy = add_noise(fields, 0.1, seeded_generator((0,)))
    assert noisy.dtype == torch.float16
    assert float(noisy.float().std()) == pytest.approx(100, rel=0.2)
