"""Which parameters belong to which layer."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from lightning_farms.analysis import Selection, layer_weights, parameter_layers


def owners(model, selection=Selection()):
    """{parameter name: layer}"""
    layers = parameter_layers(model, selection)
    return {name: layers[p] for name, p in model.named_parameters() if p in layers}


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class ResidualNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.layer1 = nn.Sequential(BasicBlock(8, 8), BasicBlock(8, 16))
        self.fc = nn.Linear(16, 10)


def test_batch_norm_follows_the_convolution_before_it():
    expected = {"conv1.weight": "conv1", "bn1.weight": "conv1", "bn1.bias": "conv1", "fc.weight": "fc", "fc.bias": "fc"}
    for block in ("layer1.0.", "layer1.1."):
        for convolution, norm in (("conv1", "bn1"), ("conv2", "bn2"), ("shortcut.0", "shortcut.1")):
            for name in (f"{convolution}.weight", f"{norm}.weight", f"{norm}.bias"):
                expected[block + name] = block + convolution
    assert owners(ResidualNet()) == expected


class PreNormBlock(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, 2)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scale = nn.Parameter(torch.ones(width))


class Transformer(nn.Module):
    def __init__(self, width=8):
        super().__init__()
        self.embedding = nn.Embedding(30, width)
        self.temperature = nn.Parameter(torch.ones(()))
        self.blocks = nn.Sequential(PreNormBlock(width), PreNormBlock(width))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 30)


def test_pre_norm_block_gives_each_norm_to_what_follows_it():
    got = owners(Transformer())
    for block in ("blocks.0", "blocks.1"):
        assert got[f"{block}.norm1.weight"] == got[f"{block}.norm1.bias"] == f"{block}.attention.in_proj_weight"
        assert got[f"{block}.norm2.weight"] == f"{block}.mlp.0"
        assert got[f"{block}.mlp.2.bias"] == f"{block}.mlp.2"
    assert got["norm.weight"] == "blocks.1.mlp.2"  # its parent starts with an embedding, not a norm
    assert got["head.bias"] == "head"


def test_what_belongs_to_no_layer_stays_out():
    model = Transformer()
    left = set(dict(model.named_parameters())) - set(owners(model))
    assert left == {"temperature", "blocks.0.scale", "blocks.1.scale"}
    assert parameter_layers(nn.Sequential(nn.BatchNorm1d(4), nn.ReLU())) == {}


def test_embeddings_are_layers_of_their_own():
    assert owners(Transformer())["embedding.weight"] == "embedding"
    model = nn.Sequential(nn.Embedding(30, 8), nn.LayerNorm(8), nn.Linear(8, 8))
    assert owners(model) == {
        "0.weight": "0",
        "1.weight": "0",
        "1.bias": "0",
        "2.weight": "2",
        "2.bias": "2",
    }


def test_frozen_parameters_are_mapped_like_any_other():
    model = ResidualNet()
    expected = owners(model)
    model.layer1.requires_grad_(False)
    assert owners(model) == expected


class Packed(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.randn(8, 4))

    def spectral_weights(self):
        yield "query", self.w[:4], (self.w,)
        yield "key", self.w[4:], (self.w,)


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        (nn.Sequential(nn.LSTM(4, 3)), {"0.weight_ih_l0": "0.weight_ih_l0", "0.bias_ih_l0": "0.weight_ih_l0"}),
        (nn.GRUCell(4, 3), {"weight_hh": "weight_hh", "bias_hh": "weight_hh"}),
        (nn.RNN(4, 3), {"weight_hh_l0": "weight_hh_l0", "bias_hh_l0": "weight_hh_l0"}),
        (nn.Sequential(Packed(), nn.Linear(4, 4)), {"0.w": "0", "1.weight": "1"}),
        (Packed(), {"w": "query"}),  # they have no name in common
        (
            nn.MultiheadAttention(8, 2, add_bias_kv=True),
            {
                "in_proj_weight": "in_proj_weight",
                "in_proj_bias": "in_proj_weight",
                "bias_k": "in_proj_weight",
                "out_proj.bias": "out_proj",
            },
        ),
        (
            nn.MultiheadAttention(8, 2, kdim=4, vdim=6),
            {
                "q_proj_weight": "q_proj_weight",
                "k_proj_weight": "k_proj_weight",
                "in_proj_bias": "q_proj_weight",
            },
        ),
    ],
    ids=["lstm", "gru cell", "rnn", "packed", "packed root", "attention", "attention of three"],
)
def test_a_parameter_of_several_weights_belongs_to_what_their_names_have_in_common(model, expected):
    got = owners(model)
    assert {name: got[name] for name in expected} == expected
    assert set(got) == set(dict(model.named_parameters()))


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: parametrizations.weight_norm(m, "weight_hh_l1")])
def test_biases_of_recurrent_layers_follow_their_own_weight(wrap):
    layers = owners(wrap(nn.GRU(4, 3, num_layers=2)))
    biases = [f"bias_{kind}_l{depth}" for kind in ("ih", "hh") for depth in (0, 1)]
    assert {name: layers[name] for name in biases} == {name: name.replace("bias", "weight") for name in biases}


def test_every_layer_named_is_one_that_is_found_or_what_several_have_in_common():
    for model in (ResidualNet(), Transformer(), nn.Sequential(Packed(), nn.LSTM(3, 3))):
        names = [weight.name for weight in layer_weights(model)]
        layers = set(parameter_layers(model).values())
        assert all(any(name == layer or name.startswith(f"{layer}.") for name in names) for layer in layers)
        assert all(any(name == layer or name.startswith(f"{layer}.") for layer in layers) for name in names)


def test_factors_belong_to_their_product():
    layer = nn.Module()
    layer.lora_A, layer.lora_B = nn.Linear(6, 2, bias=False), nn.Linear(2, 4, bias=False)
    model = nn.Sequential(layer)
    assert set(owners(model).values()) == {"0.lora"}
    assert set(owners(model, Selection(low_rank_products=False)).values()) == {"0.lora_A", "0.lora_B"}


def test_what_is_not_analysed_keeps_its_owner():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4, device="meta"))
    assert set(owners(model, Selection(exclude=("0",))).values()) == {"0", "1"}
