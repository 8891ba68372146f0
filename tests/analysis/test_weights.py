"""Which matrices are found, under which names, and which parameters belong to which layer."""

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune

from lightning_farms.analysis import layer_weights, module_weights, parameter_layers
from lightning_farms.analysis.weights import ModuleWeight


def found(model):
    return [(w.name, w.kind, w.shape, tuple(w.matrices.shape)) for w in layer_weights(model)]


def names(model):
    return [w.name for w in layer_weights(model)]


def owners(model):
    """{parameter name: layer}"""
    layers = parameter_layers(model)
    return {name: layers[p] for name, p in model.named_parameters() if p in layers}


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
        nn.Embedding(30, 8),
        nn.EmbeddingBag(30, 8),
        nn.LayerNorm((6, 6)),
        nn.RMSNorm((6, 6)),
        nn.BatchNorm2d(4),
        nn.PReLU(4),
        nn.ReLU(),
        nn.LazyLinear(4),
        nn.LazyConv2d(4, 3),
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


def test_recurrent_layers_come_by_parameter():
    assert names(nn.Sequential(nn.LSTM(4, 3, num_layers=2))) == [
        "0.weight_ih_l0",
        "0.weight_hh_l0",
        "0.weight_ih_l1",
        "0.weight_hh_l1",
    ]


@pytest.mark.parametrize("wrap", [lambda m: m, lambda m: parametrizations.weight_norm(m, "weight_hh_l1")])
def test_biases_of_recurrent_layers_follow_their_own_weight(wrap):
    layers = owners(wrap(nn.GRU(4, 3, num_layers=2)))
    biases = [f"bias_{kind}_l{depth}" for kind in ("ih", "hh") for depth in (0, 1)]
    assert {name: layers[name] for name in biases} == {name: name.replace("bias", "weight") for name in biases}


def test_multihead_attention():
    model = nn.Sequential(nn.MultiheadAttention(8, 2, add_bias_kv=True))
    assert names(model) == ["0.in_proj_weight", "0.out_proj"]
    assert owners(model)["0.in_proj_bias"] == "0.in_proj_weight"
    assert owners(model)["0.out_proj.bias"] == "0.out_proj"


def test_module_with_spectral_weights():
    model = nn.Sequential(Own())
    (weight,) = layer_weights(model)
    assert (weight.name, weight.kind, weight.shape) == ("0.w", "parameter", (2, 3, 5, 4))
    assert weight.matrices.dtype == torch.complex64
    torch.testing.assert_close(weight.matrices.real, model[0].w[0], rtol=0, atol=0)
    assert owners(model) == {"0.w": "0.w", "0.b": "0.w", "0.extra": "0.w"}


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


def test_weights_carry_no_gradient_and_share_the_storage():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3))
    for weight, module in zip(layer_weights(model), model, strict=True):
        assert not weight.matrices.requires_grad
        assert weight.matrices.untyped_storage().data_ptr() == module.weight.untyped_storage().data_ptr()


def test_gradients_stay_on_between_the_weights():
    for _ in layer_weights(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))):
        assert torch.is_grad_enabled()


def test_several_matrices_of_one_parameter():
    class Packed(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(8, 4))

        def spectral_weights(self):
            yield "query", self.w[:4], (self.w,)
            yield "key", self.w[4:], (self.w,)

    packed = Packed()
    model = nn.Sequential(packed, nn.Linear(4, 4), packed)
    assert found(model)[:2] == [
        ("0.query", "parameter", (1, 4, 4), (1, 4, 4)),
        ("0.key", "parameter", (1, 4, 4), (1, 4, 4)),
    ]
    assert names(model) == ["0.query", "0.key", "1"]
    assert owners(model)["0.w"] == "0.query"


def test_weight_norm_by_hook():
    with pytest.warns(FutureWarning, match="weight_norm"):
        model = nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 5)))
    assert found(model) == [("0", "linear", (5, 6), (1, 5, 6))]
    assert owners(model) == {"0.bias": "0", "0.weight_g": "0", "0.weight_v": "0"}


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated:FutureWarning")
@pytest.mark.parametrize(
    "hook",
    [nn.utils.weight_norm, nn.utils.spectral_norm, lambda module: prune.l1_unstructured(module, "weight", 0.5)],
    ids=["weight_norm", "spectral_norm", "prune"],
)
@pytest.mark.parametrize(
    ("make", "data"),
    [
        (lambda: nn.Linear(6, 5), (1, 6)),
        (lambda: nn.Conv2d(6, 5, 3), (1, 6, 4, 4)),
        (lambda: nn.ConvTranspose2d(6, 5, 3), (1, 6, 4, 4)),
    ],
    ids=["linear", "convolution", "transposed"],
)
def test_weights_that_a_hook_computes_are_those_of_the_next_forward_pass(hook, make, data):
    model = hook(make())
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape))  # as an update or load_state_dict does
    before = {name: value.clone() for name, value in model.state_dict().items()}
    (weight,) = layer_weights(model)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name
    model.eval()(torch.zeros(data))
    with torch.no_grad():
        (plain,) = layer_weights(_without_hooks(model))
    torch.testing.assert_close(weight.matrices, plain.matrices)


def _without_hooks(model):
    """A plain module with the weight that the last forward pass used."""
    plain = type(model)(6, 5) if isinstance(model, nn.Linear) else type(model)(6, 5, 3)
    with torch.no_grad():
        plain.weight.copy_(model.weight)
    return plain


@pytest.mark.parametrize("wrap", [parametrizations.weight_norm, parametrizations.spectral_norm])
@pytest.mark.parametrize("make", [lambda: nn.Linear(6, 5), lambda: nn.Conv2d(6, 5, 3), lambda: nn.Bilinear(6, 5, 4)])
def test_parametrised_weights_are_the_effective_ones(wrap, make):
    model = nn.Sequential(wrap(make())).eval()  # in training every look at a spectral_norm changes it
    (weight,) = layer_weights(model)
    assert weight.name == "0"
    assert weight.shape == tuple(model[0].weight.shape)
    with torch.no_grad():
        effective = model[0].weight
    flat = effective if effective.ndim < 4 else effective.permute(2, 3, 0, 1)
    torch.testing.assert_close(weight.matrices, flat.reshape(weight.matrices.shape))
    assert owners(model) == dict.fromkeys(dict(model.named_parameters()), "0")
    assert len(owners(model)) >= 2


def test_spectral_norm_buffers_and_mode_survive_the_reading():
    model = nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 5)))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    list(layer_weights(model))
    parameter_layers(model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
    assert all(module.training for module in model.modules())


def test_mode_survives_a_failing_module():
    class Failing(nn.Module):
        fails = False

        def forward(self, weight):
            if self.fails:
                raise RuntimeError("no weight today")
            return weight

    wrapped, failing = nn.Linear(6, 5), Failing()
    parametrize.register_parametrization(wrapped, "weight", failing)
    failing.fails = True
    with pytest.raises(RuntimeError, match="no weight today"):
        list(layer_weights(wrapped))
    assert all(module.training for module in wrapped.modules())


def test_tied_weight_comes_once_and_both_biases_follow():
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(first, second, nn.Linear(6, 6))
    assert names(model) == ["0", "2"]
    assert owners(model) == {"0.weight": "0", "0.bias": "0", "1.bias": "0", "2.weight": "2", "2.bias": "2"}


def test_module_used_twice_comes_once():
    shared = nn.Linear(6, 6)
    assert names(nn.Sequential(shared, nn.ReLU(), shared)) == ["0"]


def test_head_tied_to_an_embedding_is_the_head():
    embedding, head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
    head.weight = embedding.weight
    model = nn.Sequential(embedding, head)
    assert names(model) == ["1"]
    assert parameter_layers(model)[embedding.weight] == "1"


def test_names_of_a_compiled_model_are_those_of_the_plain_one():
    plain = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))
    inner = nn.Module()
    inner.add_module("_orig_mod", plain)
    outer = nn.Module()
    outer.add_module("net", inner)
    assert names(inner) == names(plain) == ["0", "1.0"]
    assert names(outer) == ["net.0", "net.1.0"]
    assert set(parameter_layers(inner).values()) == {"0", "1.0"}


def test_compiled_module():
    assert names(torch.compile(nn.Sequential(nn.Linear(4, 4)), backend="eager")) == ["0"]


def test_lazy_modules_are_left_out_until_they_have_a_shape():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4), nn.LazyBatchNorm1d())
    assert names(model) == ["0"]
    assert set(parameter_layers(model)) == set(model[0].parameters())
    model(torch.randn(2, 4))
    assert names(model) == ["0", "1"]
    assert owners(model)["2.weight"] == "1"


class BasicBlock(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(outputs, outputs, 3, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, bias=False), nn.BatchNorm2d(outputs))


class ResNet(nn.Module):
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
    assert owners(ResNet()) == expected


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
    assert left == {"embedding.weight", "temperature", "blocks.0.scale", "blocks.1.scale"}
    assert parameter_layers(nn.Sequential(nn.BatchNorm1d(4), nn.Embedding(3, 4))) == {}


def test_frozen_parameters_are_mapped_like_any_other():
    model = ResNet()
    expected = owners(model)
    model.layer1.requires_grad_(False)
    assert owners(model) == expected


def test_every_layer_named_is_one_that_is_found():
    for model in (ResNet(), Transformer(), nn.Sequential(Own(), Bare(), nn.LSTM(3, 3))):
        assert set(parameter_layers(model).values()) == set(names(model))


def test_what_a_subclass_says_itself_wins_over_its_registered_base():
    class LowRank(nn.Linear):
        def spectral_weights(self):
            yield "product", self.weight @ self.weight.mT, (self.weight,)

    (weight,) = layer_weights(nn.Sequential(LowRank(4, 16)))
    assert weight.name == "0.product"
    assert weight.matrices.shape == (1, 16, 16)
