"""Positions of weights in parameters: what lies there is what the analysis sees, and zeros written there are seen."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from lightning_farms.analysis import Selection, layer_weights
from lightning_farms.analysis.weights.stored import stored_weights


class SpectralConv2d(nn.Module):
    """By its name that of the original FNO: complex numbers."""

    def __init__(self):
        super().__init__()
        self.weights1 = nn.Parameter(torch.randn(4, 5, 3, 2, dtype=torch.cfloat))


class SpectralConvOfPairs(nn.Module):
    def __init__(self):
        super().__init__()
        self.n_modes = (3, 2)
        self.weight = nn.Parameter(torch.randn(4, 5, 3, 2, 2))


class AFNO2D(nn.Module):
    def __init__(self):
        super().__init__()
        self.w1 = nn.Parameter(torch.randn(2, 4, 5, 6))
        self.b1 = nn.Parameter(torch.randn(2, 4, 6))


class Conv1D(nn.Module):
    """As in transformers: stored as (inputs, outputs)."""

    def __init__(self):
        super().__init__()
        self.nf = 6
        self.weight = nn.Parameter(torch.randn(4, 6))
        self.bias = nn.Parameter(torch.zeros(6))


class Own(nn.Module):
    """Says itself what it holds: a shuffled part of the second of two parameters."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(4, 5))
        self.order = torch.randperm(20)[:12]

    def spectral_weights(self):
        yield "shuffled", self.second.flatten()[self.order].view(3, 4), (self.first, self.second)


STORED = {
    "linear": lambda: nn.Linear(3, 4),
    "one entry": lambda: nn.Linear(1, 1, bias=False),
    "two entries": lambda: nn.Linear(2, 1, bias=False),
    "half": lambda: nn.Linear(3, 4).bfloat16(),
    "grouped": lambda: nn.Conv2d(4, 6, 3, groups=2),
    "channels last": lambda: nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last),
    "transposed": lambda: nn.ConvTranspose3d(4, 6, 2),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "recurrent": lambda: nn.LSTM(3, 4, 2, bidirectional=True, proj_size=2),
    "experts": lambda: nn.ParameterDict({"weight": nn.Parameter(torch.randn(3, 4, 5))}),
    "spectral": SpectralConv2d,
    "pairs": SpectralConvOfPairs,
    "afno": AFNO2D,
    "conv1d": Conv1D,
    "own": Own,
}


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


def magnitudes(weight):
    flat = weight.parameter.detach().flatten()
    return torch.linalg.vector_norm(torch.stack([flat[part] for part in weight.parts]), dim=0)


@pytest.mark.parametrize("make", STORED.values(), ids=STORED)
def test_positions_hold_what_the_analysis_sees(make):
    model = nn.Sequential(make())
    seen = {layer.name: layer.matrices for layer in layer_weights(model)}
    stored = stored_weights(model)
    assert [weight.name for weight in stored] == list(seen)
    for weight in stored:
        assert not weight.reason
        assert dict(model.named_parameters())[weight.key] is weight.parameter
        assert weight.size == seen[weight.name].numel()
        assert_close(magnitudes(weight).sort().values, seen[weight.name].abs().flatten().sort().values)


@pytest.mark.parametrize("make", STORED.values(), ids=STORED)
def test_zeros_written_there_are_the_weights_own(make):
    model = nn.Sequential(make())
    for weight in stored_weights(model):
        before = {layer.name: layer.matrices.clone() for layer in layer_weights(model)}
        flat = weight.parameter.detach().flatten().clone()
        for part in weight.parts:
            flat[part] = 0
        with torch.no_grad():
            weight.parameter.copy_(flat.view(weight.parameter.shape))
        for layer in layer_weights(model):
            expected = torch.zeros_like(layer.matrices) if layer.name == weight.name else before[layer.name]
            assert torch.equal(layer.matrices, expected)


def weight_norm_by_hook():
    with pytest.warns(FutureWarning, match="deprecated"):
        return nn.utils.weight_norm(nn.Linear(4, 4))


class TwoParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.real, self.imaginary = nn.Parameter(torch.randn(4, 5)), nn.Parameter(torch.randn(4, 5))

    def spectral_weights(self):
        yield "sum", self.real + self.imaginary, (self.real, self.imaginary)
        yield "complex", torch.complex(self.real, self.imaginary), (self.real, self.imaginary)
        yield "triangle", self.real.tril(), (self.real,)
        yield "scaled", self.real / 2, (self.real,)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)),
        lambda: nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)),
        weight_norm_by_hook,
        TwoParts,
    ],
)
def test_what_is_computed_has_no_place(make):
    for weight in stored_weights(make()):
        assert weight.reason == "its values are computed from parameters (a norm, a product), not stored as they are"
        assert (weight.key, weight.parameter, weight.parts, weight.size) == ("", None, (), 0)


def test_nothing_of_the_model_is_changed():
    model = nn.Sequential(nn.Linear(3, 4), nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4))
    parameters, before = list(model.parameters()), {key: v.clone() for key, v in model.state_dict().items()}
    stored_weights(model)
    assert all(now is then for now, then in zip(model.parameters(), parameters, strict=True))
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_what_is_not_selected_says_why_and_a_shared_weight_comes_once():
    model = nn.Sequential(nn.Embedding(5, 4), nn.Linear(4, 3), nn.Linear(4, 5, bias=False), nn.Linear(4, 5, bias=False))
    model[2].weight = model[3].weight = model[0].weight
    weights = stored_weights(model, Selection(exclude=("1",)))
    assert [(weight.name, weight.key, weight.reason) for weight in weights] == [
        ("1", "", "excluded by the pattern '1'"),
        ("2", "0.weight", ""),  # the parameter has the name that the state dict has first
    ]


def test_wrappers_leave_no_trace_in_names():
    model = nn.Sequential(torch.compile(nn.Linear(3, 4), backend="eager"))
    assert [(weight.name, weight.key) for weight in stored_weights(model)] == [("0", "0.weight")]
