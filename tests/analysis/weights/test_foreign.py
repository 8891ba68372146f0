"""Classes of other packages, written here with the names and shapes that they have there."""

import warnings

import pytest
import torch
from torch import nn

from lightning_farms.analysis import checkpoint_weights, layer_weights, parameter_layers


def found(model):
    return [(w.name, w.kind, w.shape, tuple(w.matrices.shape)) for w in layer_weights(model)]


class Conv1D(nn.Module):
    """transformers."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight)


def test_conv1d_of_transformers_is_a_transposed_linear():
    module = Conv1D(6, 4)
    model = nn.Sequential(module)
    assert found(model) == [("0", "linear", (4, 6), (1, 6, 4))]
    (weight,) = layer_weights(model)
    assert [id(p) for p in weight.parameters] == [id(module.weight), id(module.bias)]
    x = torch.randn(1, 4)
    torch.testing.assert_close(module(x)[0].detach(), weight.matrices[0] @ x[0])


class ComplexDenseTensor(nn.Module):
    """tensorly-torch: a complex tensor, stored as real pairs."""

    def __init__(self, *shape):
        super().__init__()
        self.tensor = nn.Parameter(torch.randn(*shape, 2))

    def to_tensor(self):
        return torch.view_as_complex(self.tensor)


class FactorList(nn.Module):
    def __init__(self, *shapes):
        super().__init__()
        for index, shape in enumerate(shapes):
            self.register_parameter(f"factor_{index}", nn.Parameter(torch.randn(*shape, 2)))


class ComplexCPTensor(nn.Module):
    def __init__(self, *shape, rank=3):
        super().__init__()
        self.factors = FactorList(*((size, rank) for size in shape))

    def to_tensor(self):
        factors = [torch.view_as_complex(factor) for factor in self.factors.parameters()]
        letters = "abcdefg"[: len(factors)]
        return torch.einsum(",".join(f"{letter}r" for letter in letters) + f"->{letters}", *factors)


class SpectralConv(nn.Module):
    """neuraloperator."""

    def __init__(self, weight, n_modes, separable=False):
        super().__init__()
        self.n_modes, self.separable = list(n_modes), separable
        self.weight = weight
        self.bias = nn.Parameter(torch.zeros(6, *(1 for _ in n_modes)))


class OldSphericalConv(SpectralConv):
    pass


class BaseSpectralConv(nn.Module):
    pass


class SphericalConv(BaseSpectralConv):
    """On the sphere all orders of a degree share their weight: one dimension less than there are modes."""

    __init__ = nn.Module.__init__


def test_layers_on_the_sphere():
    module = SphericalConv()
    module.n_modes, module.weight = (3, 5), ComplexDenseTensor(4, 6, 3)
    module.bias = nn.Parameter(torch.zeros(6, 1, 1))
    assert found(nn.Sequential(module)) == [("0", "parameter", (4, 6, 3), (3, 4, 6))]
    (stored,) = checkpoint_weights(nn.Sequential(module).state_dict())
    assert (stored.name, stored.matrices.shape) == ("0", (3, 4, 6))


@pytest.mark.parametrize("make", [SpectralConv, OldSphericalConv])
@pytest.mark.parametrize("tensor", [ComplexDenseTensor, ComplexCPTensor])
def test_one_matrix_for_each_mode_of_neuraloperators_layers(tensor, make):
    module = make(tensor(4, 6, 3, 5), (3, 5))
    (weight,) = layer_weights(nn.Sequential(module))
    assert (weight.name, weight.kind, weight.shape) == ("0", "parameter", (4, 6, 3, 5))
    assert weight.matrices.dtype == torch.complex64
    stored = module.weight.to_tensor().detach()
    for row in range(3):
        for column in range(5):
            torch.testing.assert_close(weight.matrices[row * 5 + column], stored[:, :, row, column])
    assert set(parameter_layers(module).values()) == {"weight"}
    assert set(parameter_layers(module)) == set(module.parameters())


def test_neuraloperators_older_layers():
    parts = SpectralConv(nn.ModuleList([ComplexDenseTensor(4, 6, 3), ComplexDenseTensor(4, 6, 3)]), (3,))
    assert found(nn.Sequential(parts)) == [
        ("0.weight.0", "parameter", (4, 6, 3), (3, 4, 6)),
        ("0.weight.1", "parameter", (4, 6, 3), (3, 4, 6)),
    ]
    joint = SpectralConv(ComplexDenseTensor(8, 4, 6, 3, 5), (3, 5))
    assert found(nn.Sequential(joint)) == [("0", "parameter", (8, 4, 6, 3, 5), (8 * 15, 4, 6))]


def test_a_plain_complex_parameter_does_too():
    module = SpectralConv(nn.Parameter(torch.randn(4, 6, 3, 5, dtype=torch.complex64)), (3, 5))
    assert found(nn.Sequential(module)) == [("0", "parameter", (4, 6, 3, 5), (15, 4, 6))]


def test_a_separable_layer_has_no_matrices():
    (weight,) = layer_weights(nn.Sequential(SpectralConv(ComplexDenseTensor(6, 3, 5), (3, 5), separable=True)))
    assert weight.reason == "a separable spectral convolution has one number for each channel and mode, and no matrix"
    assert weight.shape == (6, 3, 5)


class SpectralConv2d(nn.Module):
    """The original FNO."""

    def __init__(self, real_pairs=False):
        super().__init__()
        self.modes1, self.modes2 = 3, 5
        shape, dtype = ((4, 6, 3, 5, 2), torch.float32) if real_pairs else ((4, 6, 3, 5), torch.complex64)
        self.weights1 = nn.Parameter(torch.rand(shape, dtype=dtype))
        self.weights2 = nn.Parameter(torch.rand(shape, dtype=dtype))


@pytest.mark.parametrize("real_pairs", [False, True])
def test_the_original_fnos_weights(real_pairs):
    module = SpectralConv2d(real_pairs)
    first, second = layer_weights(nn.Sequential(module))
    assert (first.name, second.name) == ("0.weights1", "0.weights2")
    assert first.matrices.shape == second.matrices.shape == (15, 4, 6)
    stored = module.weights2.detach()
    stored = torch.view_as_complex(stored) if real_pairs else stored
    torch.testing.assert_close(second.matrices[7], stored[:, :, 1, 2])


def test_complex_weights_of_a_class_of_any_name_are_read_as_in_a_file():
    module = nn.Module()
    module.weights1 = SpectralConv2d().weights1
    (layer,), (stored,) = layer_weights(nn.Sequential(module)), checkpoint_weights(module.state_dict())
    assert layer.matrices.equal(stored.matrices.mT)  # of the same spectrum
    assert (layer.layout, stored.layout) == ("iobb", "iobb")
    assert (
        "its layout is guessed by its name and type as iobb; if that is wrong, give the right one with `layout` "
        "(--layout), as in PATTERN=batch" in layer.remark
    )


def test_they_multiply_channels():
    """y_o = sum_i x_i W_io for each mode, as the FNO's contraction has it."""
    module = SpectralConv2d()
    x = torch.randn(1, 4, 3, 5, dtype=torch.complex64)
    y = torch.einsum("bixy,ioxy->boxy", x, module.weights1.detach())
    matrices = next(layer_weights(module)).matrices
    torch.testing.assert_close(y[0].flatten(1).T, (x[0].flatten(1).T.unsqueeze(1) @ matrices).squeeze(1))


def test_lists_of_real_pairs():
    class SpectralConv1d(nn.Module):
        def __init__(self):
            super().__init__()
            self.fourier_weight = nn.ParameterList([nn.Parameter(torch.randn(4, 4, 3, 2)) for _ in range(2)])

    module = nn.Sequential(SpectralConv1d())
    assert found(module) == [
        ("0.fourier_weight.0", "parameter", (4, 4, 3, 2), (3, 4, 4)),
        ("0.fourier_weight.1", "parameter", (4, 4, 3, 2), (3, 4, 4)),
    ]
    assert next(layer_weights(module)).matrices.is_complex()


class AFNO2D(nn.Module):
    """FourCastNet's and DPOT's."""

    def __init__(self):
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(2, 3, 4, 8)), nn.Parameter(torch.randn(2, 3, 8))
        self.w2, self.b2 = nn.Parameter(torch.randn(2, 3, 8, 4)), nn.Parameter(torch.randn(2, 3, 4))


def test_afnos_real_pairs():
    module = AFNO2D()
    model = nn.Sequential(module)
    assert found(model) == [
        ("0.w1", "parameter", (2, 3, 4, 8), (3, 4, 8)),
        ("0.w2", "parameter", (2, 3, 8, 4), (3, 8, 4)),
    ]
    (first, second) = layer_weights(model)
    torch.testing.assert_close(torch.view_as_real(first.matrices).movedim(-1, 0), module.w1.detach())
    assert [id(p) for p in second.parameters] == [id(module.w2), id(module.b2)]


@pytest.mark.parametrize("name", ["Linear", "Conv2d", "Embedding", "LSTM"])
def test_quantised_classes_of_torch_have_one_row(name):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch itself: the whole of torch.ao is on its way out
        module = {
            "Linear": lambda: torch.ao.nn.quantized.Linear(4, 3),
            "Conv2d": lambda: torch.ao.nn.quantized.Conv2d(4, 3, 2),
            "Embedding": lambda: torch.ao.nn.quantized.Embedding(4, 3),
            "LSTM": lambda: torch.ao.nn.quantized.dynamic.LSTM(4, 3),
        }[name]()
        (weight,) = layer_weights(nn.Sequential(module))
    assert weight.name == "0"
    assert weight.reason == "it is quantised, and stored as packed integers"
