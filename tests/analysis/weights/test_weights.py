"""The walk over a whole model: names, ties, and what is left out with which reason."""

import warnings

import pytest
import torch
from torch import nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

from lightning_farms.analysis import (
    ModuleWeight,
    Selection,
    layer_weights,
    module_weights,
    parameter_layers,
)


def names(model, selection=Selection()):
    return [w.name for w in layer_weights(model, selection)]


def reasons(model, selection=Selection()):
    return {w.name: w.reason for w in layer_weights(model, selection)}


def owners(model):
    """{parameter name: layer}"""
    layers = parameter_layers(model)
    return {name: layers[p] for name, p in model.named_parameters() if p in layers}


def test_weights_carry_no_gradient_and_share_the_storage():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(4, 4, 3), nn.ConvTranspose2d(4, 4, 3), nn.GRUCell(4, 4))
    for weight in layer_weights(model):
        assert not weight.matrices.requires_grad
        assert weight.matrices.untyped_storage().data_ptr() == weight.parameters[0].untyped_storage().data_ptr()


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
    assert names(model) == ["0.query", "0.key", "1"]


def test_tied_weight_comes_once_and_both_biases_follow():
    first, second = nn.Linear(6, 6), nn.Linear(6, 6)
    second.weight = first.weight
    model = nn.Sequential(first, second, nn.Linear(6, 6))
    assert names(model) == ["0", "2"]
    assert owners(model) == {"0.weight": "0", "0.bias": "0", "1.bias": "0", "2.weight": "2", "2.bias": "2"}


def test_module_used_twice_comes_once():
    shared = nn.Linear(6, 6)
    assert names(nn.Sequential(shared, nn.ReLU(), shared)) == ["0"]


@pytest.mark.parametrize("embeddings", [False, True])
@pytest.mark.parametrize("head_first", [False, True])
def test_head_tied_to_an_embedding_is_the_head(embeddings, head_first):
    embedding, head = nn.Embedding(30, 8), nn.Linear(8, 30, bias=False)
    head.weight = embedding.weight
    model = nn.ModuleDict({"head": head, "table": embedding} if head_first else {"table": embedding, "head": head})
    assert reasons(model, Selection(embeddings=embeddings)) == {"head": ""}
    assert parameter_layers(model)[embedding.weight] == "head"


def test_embeddings_come_when_asked_for():
    model = nn.Sequential(nn.Embedding(30, 8), nn.Linear(8, 4))
    assert reasons(model) == {
        "0": "embeddings are analysed on request only: Selection(embeddings=True), or --embeddings",
        "1": "",
    }
    first, second = layer_weights(model, Selection(embeddings=True))
    assert (first.kind, first.reason, first.matrices.shape) == ("embedding", "", (1, 30, 8))
    assert second.reason == ""


def test_names_of_wrapped_models_are_those_of_the_plain_one():
    plain = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)))

    def wrap(part, inner):
        outer = nn.Module()
        outer.add_module(part, inner)
        return outer

    for part in ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"):
        assert names(wrap(part, plain)) == names(plain) == ["0", "1.0"]
        assert names(wrap("net", wrap(part, plain))) == ["net.0", "net.1.0"]
        assert set(parameter_layers(wrap(part, plain)).values()) == {"0", "1.0"}
    assert names(DataParallel(plain)) == ["0", "1.0"]
    assert names(wrap("net", DataParallel(wrap("module", plain)))) == ["net.module.0", "net.module.1.0"]
    assert names(wrap("module", plain)) == ["module.0", "module.1.0"]  # nobody's wrapper


def test_names_in_distributed_data_parallel():
    model = nn.Sequential(nn.Linear(4, 4))
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        assert names(DistributedDataParallel(model)) == ["0"]
    finally:
        torch.distributed.destroy_process_group()


def test_compiled_module():
    assert names(torch.compile(nn.Sequential(nn.Linear(4, 4)), backend="eager")) == ["0"]


def test_lazy_modules_have_a_reason_until_they_have_a_shape():
    model = nn.Sequential(nn.Linear(4, 4), nn.LazyLinear(4), nn.LazyBatchNorm1d())
    reason = "it is not initialised yet: the module takes its shape from the first forward pass"
    assert reasons(model) == {"0": "", "1": reason}
    assert set(parameter_layers(model)) == set(model[0].parameters())
    model(torch.randn(2, 4))
    assert reasons(model) == {"0": "", "1": ""}
    assert owners(model)["2.weight"] == "1"


def with_integers():
    module = nn.Linear(4, 3, bias=False)
    module.weight = nn.Parameter(torch.zeros(3, 4, dtype=torch.int8), requires_grad=False)
    return module


def with_float8():
    module = nn.Linear(4, 3, bias=False)
    module.weight = nn.Parameter(torch.zeros(3, 4).to(torch.float8_e4m3fn), requires_grad=False)
    return module


class Wrapped(torch.Tensor):
    """Values elsewhere, as in torchao's classes; every operation on it fails."""

    @staticmethod
    def __new__(cls, inner):
        return torch.Tensor._make_wrapper_subclass(cls, inner.shape, dtype=torch.float32)

    def __init__(self, inner):
        self.inner = inner

    def __tensor_flatten__(self):
        return ["inner"], None

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.detach.default:
            return cls(args[0].inner)
        raise NotImplementedError(function)


def with_wrapper():
    module = nn.Linear(4, 3, bias=False)
    module.weight = nn.Parameter(Wrapped(torch.zeros(3, 4)), requires_grad=False)
    return module


def with_packed_parameter():
    """As bitsandbytes stores four bits."""
    module = nn.Linear(4, 3, bias=False)
    module.weight = nn.Parameter(torch.zeros(6, 1), requires_grad=False)
    module.weight.quant_state = object()
    return module


def with_packed_buffer():
    """As GPTQ and AWQ store a weight."""
    module = nn.Module()
    module.register_buffer("qweight", torch.zeros(2, 8, dtype=torch.int32))
    module.register_buffer("scales", torch.zeros(2, 8))
    return module


def with_quantised_class():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch itself: the whole of torch.ao is on its way out
        return torch.ao.nn.quantized.Linear(4, 3)


@pytest.mark.parametrize(
    ("make", "shape", "reason"),
    [
        (lambda: nn.Linear(4, 3, device="meta"), (3, 4), "the weights are on the meta device, without values"),
        (with_integers, (3, 4), "the weights are of type torch.int8, not real or complex numbers"),
        (with_float8, (3, 4), "it is quantised: its type, torch.float8_e4m3fn"),
        (with_wrapper, (3, 4), "it is quantised, or otherwise not stored as plain numbers"),
        (with_packed_parameter, (6, 1), "it is quantised, or otherwise not stored as plain numbers"),
        (with_packed_buffer, (2, 8), "it is quantised, and stored as torch.int32"),
        (with_quantised_class, (3, 4), "it is quantised, and stored as packed integers"),
        (lambda: nn.LazyConv2d(3, 3), (), "it is not initialised yet"),
    ],
    ids=["meta", "int8", "float8", "torchao", "bitsandbytes", "gptq", "torch.ao", "lazy"],
)
def test_what_has_no_plain_numbers_has_a_reason(make, shape, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        model = nn.Sequential(make(), nn.Linear(4, 4))
        skipped, kept = layer_weights(model)
    assert skipped.name == "0"
    assert skipped.reason.startswith(reason)
    assert skipped.shape == shape
    assert skipped.matrices.shape == (0, 0, 0)
    assert (kept.name, kept.reason) == ("1", "")


def test_buffers_of_whole_numbers_are_no_weights():
    module = nn.Module()
    module.register_buffer("relative_position_index", torch.zeros(9, 9, dtype=torch.int64))
    module.register_buffer("weight_seen", torch.zeros(9, 9, dtype=torch.bool))
    module.register_buffer("weight_count", torch.zeros(9, dtype=torch.int64))
    assert names(module) == []


@pytest.mark.parametrize("layout", ["coo", "csr"])
def test_sparse_weights_are_made_dense(layout):
    model = nn.Sequential(nn.Linear(12, 8), nn.Linear(8, 4))
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(8, 12) < 0.4)
    dense = model[0].weight.detach().clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # torch says that CSR is in beta
        sparse = dense.to_sparse() if layout == "coo" else dense.to_sparse_csr()
    model[0].weight = nn.Parameter(sparse)
    parameter = model[0].weight
    first, second = layer_weights(model)
    assert (first.reason, first.shape, second.reason) == ("", (8, 12), "")
    torch.testing.assert_close(first.matrices[0], dense, rtol=0, atol=0)
    assert first.parameters[0] is parameter is model[0].weight
    (meta, _) = layer_weights(model, values=False)
    assert meta.matrices.is_meta
    assert (meta.reason, meta.matrices.shape) == ("", (1, 8, 12))


def test_what_a_registered_function_raises_is_the_reason():
    class Raising(nn.Module):
        def __init__(self):
            super().__init__()
            self.w = nn.Parameter(torch.randn(4, 4))

    class Twice(Raising):
        def spectral_weights(self):
            yield "w", self.w, (self.w,)
            yield "w", self.w.mT, (self.w,)

    class Vector(Raising):
        def spectral_weights(self):
            yield "w", self.w[0], (self.w,)

    @module_weights.register
    def _raising(module: Raising):
        yield ModuleWeight("", "parameter", module.w, (module.w,))
        raise KeyError("w")

    model = nn.Sequential(Raising(), Twice(), Vector(), nn.Linear(4, 4))
    start = "the weight could not be computed: "
    assert reasons(model) == {
        "0": f"{start}KeyError: 'w'",
        "1": f"{start}ValueError: two weights have one name: 1.w, 1.w",
        "2": f"{start}ValueError: Expected argument `matrices` to be (..., m, n), but got shape (4,).",
        "3": "",
    }
    assert owners(model)["0.w"] == "0"


def test_names_are_unique_in_a_model_of_everything():
    model = nn.ModuleDict(
        {
            "lstm": nn.LSTM(4, 3, num_layers=2, bidirectional=True),
            "cell": nn.GRUCell(4, 3),
            "attention": nn.TransformerEncoderLayer(8, 2, 16),
            "separate": nn.MultiheadAttention(8, 2, kdim=4),
            "bilinear": nn.Bilinear(3, 4, 5),
            "embedding": nn.Embedding(5, 4),
        }
    )
    found = names(model)
    assert len(set(found)) == len(found) == 32 + 6 + 6 + 4 + 1 + 1
    assert found == names(model)


def selected(model, **selection):
    return [name for name, reason in reasons(model, Selection(**selection)).items() if not reason]


def test_what_is_not_selected_stays_with_its_reason():
    model = nn.Sequential(nn.Linear(4, 4), nn.Conv2d(8, 9, 3), nn.Linear(20, 30))
    assert selected(model, exclude=("0",)) == ["1", "2"]
    assert selected(model, include=("[01]",)) == ["0", "1"]
    assert selected(model, kinds=("convolution",)) == ["1"]
    assert selected(model, min_size=5) == ["1", "2"]
    assert selected(model, max_size=8) == ["0", "1"]
    (excluded, *_) = layer_weights(model, Selection(exclude=("0",)))
    assert excluded.reason == "excluded by the pattern '0'"
    assert (excluded.kind, excluded.shape, excluded.matrices.shape) == ("linear", (4, 4), (0, 0, 0))
    assert excluded.parameters == tuple(model[0].parameters())


def test_a_pattern_without_a_match_is_reported_before_the_first_weight():
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    weights = layer_weights(model, Selection(exclude=("0", "head")))
    with pytest.raises(ValueError, match=r"`exclude` to match layers, but 'head' matches none. The layers are 0, 1"):
        next(weights)


def test_wrong_arguments_are_reported_at_once():
    with pytest.raises(TypeError, match=r"`model` to be a torch.nn.Module, but got dict"):
        layer_weights({})
    with pytest.raises(TypeError, match=r"`selection` to be a Selection"):
        layer_weights(nn.Linear(2, 2), "0")
