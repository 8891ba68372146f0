import numpy as np
import pytest
import torch
from scipy.special import erf

from lightning_farms.models.dpot._afno import AFNO2d, build_activation


def _gelu(values):
    return values * 0.5 * (1 + erf(values / np.sqrt(2)))


def _layer(vector, weight, bias, activation):
    """One complex layer on one block's vector, in complex numbers."""
    result = vector @ (weight[0] + 1j * weight[1]) + bias[0] + 1j * bias[1]
    return activation(result.real) + 1j * activation(result.imag)


def _afno_by_loops(x, w1, b1, w2, b2, modes):
    """AFNO on (batch, channels, height, width), one frequency and one block at a time, with NumPy's transform."""
    batch, _, height, width = x.shape
    blocks, size = w1.shape[1:3]
    spectrum = np.fft.rfft2(x, norm="ortho")
    mixed = np.zeros_like(spectrum)
    for b in range(batch):
        for row in range(min(modes, height)):
            for column in range(min(modes, spectrum.shape[3])):
                for k in range(blocks):
                    group = slice(k * size, (k + 1) * size)
                    hidden = _layer(spectrum[b, group, row, column], w1[:, k], b1[:, k], _gelu)
                    mixed[b, group, row, column] = _layer(hidden, w2[:, k], b2[:, k], lambda values: values)
    return x + np.fft.irfft2(mixed, s=(height, width), norm="ortho")


def _filled(channels, n_blocks, modes, seed=0):
    generator = torch.Generator().manual_seed(seed)
    module = AFNO2d(channels, n_blocks=n_blocks, modes=modes).double()
    for parameter in module.parameters():
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return module


@pytest.mark.parametrize(
    ("channels", "n_blocks", "modes", "height", "width"),
    [(6, 2, 3, 8, 8), (4, 4, 32, 5, 7), (8, 1, 2, 4, 6), (4, 2, 5, 8, 8), (4, 2, 1, 1, 1)],
)
def test_forward_equals_numpy_loops(channels, n_blocks, modes, height, width):
    module = _filled(channels, n_blocks, modes)
    x = torch.randn(2, channels, height, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    weights = (parameter.detach().numpy() for parameter in (module.w1, module.b1, module.w2, module.b2))
    expected = _afno_by_loops(x.numpy(), *weights, modes)
    torch.testing.assert_close(module(x).detach(), torch.from_numpy(expected), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("modes", [2, 8])
def test_gradients_equal_finite_differences(modes):
    module = _filled(4, 2, modes)
    x = torch.randn(1, 4, 4, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1), requires_grad=True)

    def apply(field, *parameters):
        names = [name for name, _ in module.named_parameters()]
        return torch.func.functional_call(module, dict(zip(names, parameters, strict=True)), field)

    assert torch.autograd.gradcheck(apply, (x, *module.parameters()))


def test_constant_field_reaches_only_frequency_zero():
    """With zero biases and an odd activation at zero, a constant field stays constant."""
    module = AFNO2d(4, n_blocks=2, modes=8)
    torch.nn.init.zeros_(module.b1)
    torch.nn.init.zeros_(module.b2)
    result = module(torch.ones(1, 4, 6, 6))
    torch.testing.assert_close(result, result[..., :1, :1].expand_as(result))
    assert (result - 1).abs().min() > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_computes_in_float32(dtype):
    module = AFNO2d(8, n_blocks=2, modes=3)
    x = torch.randn(2, 8, 6, 6, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=dtype):
        result = module(x)
    assert torch.equal(result, module(x))


def test_bfloat16_module_returns_bfloat16_close_to_float32():
    torch.manual_seed(0)
    module = AFNO2d(8, n_blocks=2, modes=3).bfloat16()
    x = torch.randn(2, 8, 6, 6).bfloat16()
    result = module(x)
    assert result.dtype == torch.bfloat16
    expected = module.float()(x.float())
    torch.testing.assert_close(result.float(), expected, rtol=2**-8, atol=2**-8)
    result.sum().backward()


def test_initial_weights_fill_the_stated_range():
    torch.manual_seed(0)
    module = AFNO2d(128, n_blocks=2)
    for parameter in module.parameters():
        assert parameter.min() >= 0
        assert parameter.max() < 1 / 64**2
        assert parameter.mean().item() == pytest.approx(0.5 / 64**2, rel=0.1)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"channels": 6, "n_blocks": 4}, ValueError, "`channels` to be a multiple of `n_blocks`, but got 6 and 4"),
        ({"channels": 8, "modes": 0}, ValueError, "`modes` to be an integer of at least 1, but got 0"),
        ({"channels": 8.0}, TypeError, "`channels` to be an integer, but got 8.0"),
        ({"channels": 8, "n_blocks": True}, TypeError, "`n_blocks` to be an integer, but got True"),
        ({"channels": 8, "act": "cube"}, ValueError, "`act` to be one of .*'gelu'.*, but got 'cube'"),
    ],
)
def test_wrong_settings_are_refused(settings, error, message):
    with pytest.raises(error, match=message):
        AFNO2d(**settings)


@pytest.mark.parametrize("name", ["gelu", "silu", "relu", "tanh"])
def test_activation_equals_torch_functional(name):
    function = torch.tanh if name == "tanh" else getattr(torch.nn.functional, name)
    x = torch.linspace(-3, 3, 7)
    torch.testing.assert_close(build_activation(name)(x), function(x))
