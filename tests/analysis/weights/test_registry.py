"""Which matrices each class of module holds."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from lightning_farms.analysis import (
    ModuleWeight,
    Selection,
    checkpoint_weights,
    layer_weights,
    module_weights,
    parameter_layers,
)


def found(model):
    weights = layer_weights(model, Selection(embeddings=True))
    return [(w.name, w.kind, w.shape, tuple(w.matrices.shape)) for w in weights]


def names(model):
    return [w.name for w in layer_weights(model)]


def owners(model):
    """{parameter name: layer}"""
    layers = parameter_layers(model)
    return {name: layers[p] for name, p in model.named_parameters() if p in layers}


def sorted_entries(tensors):
    return torch.cat([tensor.detach().flatten() for tensor in tensors]).sort().values


class Plain(nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(3, 5, 4))


class Bare(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 3, 5, 4))
        self.mix = nn.Parameter(torch.randn(6, 6, dtype=torch.complex64))
        self.bias = nn.Parameter(torch.randn(5))
        self.token = nn.Parameter(torch.randn(1, 1, 5))


class Own(nn.Module):
    """Complex weight stored as real pairs."""

    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(2, 3, 5, 4))
        self.b = nn.Parameter(torch.randn(2, 3, 4))
        self.extra = nn.Parameter(torch.randn(7))

    def spectral_weights(self):
        yield "w", torch.complex(self.w[0], self.w[1]), (self.w, self.b)


@pytest.mark.parametrize(
    ("module", "kind", "matrices"),
    [
        (nn.Linear(5, 3), "linear", (1, 3, 5)),
        (nn.Conv1d(4, 6, 7), "convolution", (7, 6, 4)),
        (nn.Conv2d(4, 6, (3, 2)), "convolution", (6, 6, 4)),
        (nn.Conv3d(4, 6, 2), "convolution", (8, 6, 4)),
        (nn.Conv2d(4, 6, 3, groups=2), "convolution", (18, 3, 2)),
        (nn.Conv2d(4, 4, 3, groups=4), "convolution", (36, 1, 1)),
        (nn.ConvTranspose1d(4, 6, 5), "transposed convolution", (5, 6, 4)),
        (nn.ConvTranspose2d(4, 6, 3), "transposed convolution", (9, 6, 4)),
        (nn.ConvTranspose3d(4, 6, 2), "transposed convolution", (8, 6, 4)),
        (nn.ConvTranspose2d(4, 6, 3, groups=2), "transposed convolution", (18, 3, 2)),
        (nn.Embedding(30, 8), "embedding", (1, 30, 8)),
        (nn.EmbeddingBag(30, 8), "embedding", (1, 30, 8)),
        (nn.Bilinear(5, 4, 3), "parameter", (3, 5, 4)),
        (Plain(), "parameter", (3, 5, 4)),
    ],
    ids=str,
)
def test_one_weight_modules(module, kind, matrices):
    assert found(nn.Sequential(module)) == [("0", kind, tuple(module.weight.shape), matrices)]
    (weight,) = module_weights(module)
    assert weight.suffix == ""
    assert {id(p) for p in weight.parameters} <= {id(p) for p in module.parameters()}


@pytest.mark.parametrize(
    "module",
    [
        nn.LayerNorm((6, 6)),
        nn.RMSNorm((6, 6)),
        nn.BatchNorm2d(4),
        nn.PReLU(4),
        nn.ReLU(),
        nn.LazyBatchNorm1d(),
        nn.LazyBatchNorm1d(affine=False),
    ],
    ids=str,
)
def test_modules_without_a_matrix(module):
    assert found(nn.Sequential(module)) == []


def test_grouped_convolutions_are_cut_into_their_groups():
    direct, transposed = nn.Conv2d(6, 4, (2, 3), groups=2), nn.ConvTranspose2d(6, 4, (2, 3), groups=2)
    (a,), (b,) = module_weights(direct), module_weights(transposed)
    for group in range(2):
        for row in range(2):
            for column in range(3):
                position = group * 6 + row * 3 + column
                kernel = direct.weight[group * 2 : group * 2 + 2, :, row, column]
                torch.testing.assert_close(a.matrices[position], kernel, rtol=0, atol=0)
                kernel = transposed.weight[group * 3 : group * 3 + 3, :, row, column].T
                torch.testing.assert_close(b.matrices[position], kernel, rtol=0, atol=0)


def test_matrices_are_those_that_act():
    """A 1 x 1 transposed convolution in groups is a block-diagonal product with its matrices."""
    module = nn.ConvTranspose2d(6, 4, 1, groups=2, bias=False)
    (weight,) = layer_weights(nn.Sequential(module))
    x = torch.randn(1, 6, 1, 1)
    expected = torch.block_diag(*weight.matrices) @ x.flatten()
    torch.testing.assert_close(module(x).flatten().detach(), expected)


def test_bare_parameters_of_two_or_more_dimensions():
    assert found(nn.ModuleDict({"mixer": Bare()})) == [
        ("mixer.w", "parameter", (2, 3, 5, 4), (6, 5, 4)),
        ("mixer.mix", "parameter", (6, 6), (1, 6, 6)),
    ]


@settings(deadline=None, max_examples=60)
@given(
    groups=st.integers(1, 3),
    per_group=st.tuples(st.integers(1, 4), st.integers(1, 4)),
    kernel=st.lists(st.integers(1, 4), min_size=1, max_size=3),
    transposed=st.booleans(),
)
def test_matrices_of_any_convolution_hold_every_entry_once(groups, per_group, kernel, transposed):
    inputs, outputs = (groups * channels for channels in per_group)
    classes = (
        (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
        if transposed
        else (nn.Conv1d, nn.Conv2d, nn.Conv3d)
    )
    module = classes[len(kernel) - 1](inputs, outputs, tuple(kernel), groups=groups)
    (weight,) = module_weights(module)
    assert weight.matrices.shape == (groups * math.prod(kernel), *per_group[::-1])
    assert torch.equal(sorted_entries([weight.matrices]), sorted_entries([module.weight]))


LSTM_GATES, GRU_GATES = "ifgo", "rzn"


@pytest.mark.parametrize(
    ("module", "gates"),
    [
        (nn.LSTM(5, 4, num_layers=2, bidirectional=True, proj_size=3), LSTM_GATES),
        (nn.GRU(5, 4, bidirectional=True), GRU_GATES),
        (nn.RNN(5, 4, num_layers=2), ""),
        (nn.LSTMCell(5, 4), LSTM_GATES),
        (nn.GRUCell(5, 4, bias=False), GRU_GATES),
        (nn.RNNCell(5, 4), ""),
    ],
    ids=str,
)
def test_each_gate_of_a_recurrent_layer_is_a_matrix(module, gates):
    weights = {name: p for name, p in module.named_parameters() if name.startswith("weight")}
    expected = []
    for name, weight in weights.items():
        own_gates = [""] if name.startswith("weight_hr") or not gates else [f".{gate}" for gate in gates]
        shape = (weight.shape[0] // len(own_gates), weight.shape[1])
        expected += [(name + gate, "recurrent", shape, (1, *shape)) for gate in own_gates]
    assert found(module) == expected
    rows = list(layer_weights(module))
    assert torch.equal(sorted_entries(row.matrices for row in rows), sorted_entries(weights.values()))
    for row in rows:
        name = row.name.split(".")[0]
        assert row.parameters[0] is weights[name]
        bias = getattr(module, name.replace("weight", "bias"), None)
        assert [p is bias for p in row.parameters[1:]] == ([] if bias is None else [True])


@pytest.mark.parametrize("make", [nn.LSTMCell, nn.GRUCell], ids=["lstm", "gru"])
def test_gates_bear_the_names_of_pytorchs_documentation(make):
    """A gate whose weights and biases are those of saturation decides what the documentation says it does."""
    cell = make(3, 2)
    gates = {weight.suffix.rpartition(".")[2] for weight in module_weights(cell)}
    with torch.no_grad():
        for parameter in cell.parameters():
            parameter.zero_()
        wanted = "z" if "z" in gates else "f"
        for weight in module_weights(cell):
            if weight.suffix == f"weight_hh.{wanted}":
                weight.matrices.fill_(1e3)
        state = torch.full((1, 2), 0.5)
        if make is nn.GRUCell:
            torch.testing.assert_close(cell(torch.zeros(1, 3), state), state)  # z = 1: the state is kept
        else:
            memory = torch.full((1, 2), 0.25)
            _, kept = cell(torch.zeros(1, 3), (state, memory))
            torch.testing.assert_close(kept, memory)  # f = 1, g = 0: the memory is kept


def test_queries_keys_and_values_come_apart():
    packed, three = nn.MultiheadAttention(8, 2, add_bias_kv=True), nn.MultiheadAttention(8, 2, kdim=4, vdim=6)
    assert found(nn.Sequential(packed)) == [
        *((f"0.in_proj_weight.{part}", "attention", (8, 8), (1, 8, 8)) for part in "qkv"),
        ("0.out_proj", "linear", (8, 8), (1, 8, 8)),
    ]
    assert found(nn.Sequential(three))[:3] == [
        ("0.q_proj_weight", "attention", (8, 8), (1, 8, 8)),
        ("0.k_proj_weight", "attention", (8, 4), (1, 8, 4)),
        ("0.v_proj_weight", "attention", (8, 6), (1, 8, 6)),
    ]
    q, k, v = list(layer_weights(packed))[:3]
    torch.testing.assert_close(torch.cat([q.matrices[0], k.matrices[0], v.matrices[0]]), packed.in_proj_weight.detach())


def test_queries_are_what_meets_the_keys():
    """With equal keys attention is even; the rows called k are those that make them equal when zero."""
    module = nn.MultiheadAttention(8, 2, bias=False)
    with torch.no_grad():
        {w.suffix: w for w in module_weights(module)}["in_proj_weight.k"].matrices.zero_()
    _, attention = module(*torch.randn(3, 5, 1, 8))
    torch.testing.assert_close(attention, torch.full_like(attention, 0.2))


def test_what_a_subclass_holds_besides_is_found_too():
    class Gated(nn.Linear):
        def __init__(self):
            super().__init__(5, 4)
            self.gate = nn.Parameter(torch.randn(4, 6))
            self.scale = nn.Parameter(torch.randn(4))

    assert found(nn.Sequential(Gated())) == [
        ("0", "linear", (4, 5), (1, 4, 5)),
        ("0.gate", "parameter", (4, 6), (1, 4, 6)),
    ]
    assert owners(Gated()) == {"weight": "weight", "bias": "weight", "gate": "gate", "scale": "weight"}


def test_a_weight_that_is_no_parameter_counts_too():
    frozen = nn.Linear(4, 3, bias=False)
    weight = frozen.weight.detach()
    del frozen.weight
    frozen.register_buffer("weight", weight)
    assert found(frozen) == [("weight", "linear", (3, 4), (1, 3, 4))]


class Around(nn.Linear):
    """A linear layer around another, whose weight it shows, as some adapters' layers are."""

    def __init__(self, base_layer):
        nn.Module.__init__(self)
        self.base_layer = base_layer

    @property
    def weight(self):
        return self.base_layer.weight


def test_a_weight_of_a_part_counts_once():
    model = nn.Sequential(Around(nn.Linear(4, 3)))
    assert [layer.name for layer in layer_weights(model)] == ["0.base_layer"]
    assert {layer.name for layer in checkpoint_weights(model.state_dict())} == {"0.base_layer"}


def test_module_with_spectral_weights():
    model = nn.Sequential(Own())
    (weight,) = layer_weights(model)
    assert (weight.name, weight.kind, weight.shape) == ("0.w", "parameter", (2, 3, 5, 4))
    assert weight.matrices.dtype == torch.complex64
    torch.testing.assert_close(weight.matrices.real, model[0].w[0], rtol=0, atol=0)
    assert owners(model) == {"0.w": "0.w", "0.b": "0.w", "0.extra": "0.w"}


def test_a_part_that_is_called_spectral_weights_is_no_method():
    model = nn.Module()
    model.spectral_weights = nn.Linear(4, 3)
    assert [layer.name for layer in layer_weights(model)] == ["spectral_weights"]
    assert not any(layer.reason for layer in layer_weights(model))


def test_a_class_can_be_registered():
    class Mine(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(24))

    @module_weights.register
    def _mine(module: Mine):
        yield ModuleWeight("", "parameter", module.w.reshape(1, 6, 4), (module.w,))

    model = nn.Sequential(Mine())
    assert found(model) == [("0", "parameter", (1, 6, 4), (1, 6, 4))]
    assert owners(model) == {"0.w": "0"}


def test_what_a_subclass_says_itself_wins_over_its_registered_base():
    class LowRank(nn.Linear):
        def spectral_weights(self):
            yield "product", self.weight @ self.weight.mT, (self.weight,)

    (weight,) = layer_weights(nn.Sequential(LowRank(4, 16)))
    assert weight.name == "0.product"
    assert weight.matrices.shape == (1, 16, 16)
