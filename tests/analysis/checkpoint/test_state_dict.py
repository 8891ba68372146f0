"""State dicts against the models whose they are, without the model's classes."""

import json
import weakref
from collections.abc import Mapping

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_farms.analysis import Selection, analyze_weights, checkpoint_changes, checkpoint_weights, layer_weights
from lightning_farms.analysis._names import match_names
from lightning_farms.models import DPOT


class Conv1D(nn.Module):
    """As in transformers: a linear layer stored the other way round."""

    def __init__(self, nf, nx):
        super().__init__()
        self.nf = nf
        self.weight = nn.Parameter(torch.randn(nx, nf))
        self.bias = nn.Parameter(torch.zeros(nf))


class SpectralConv2d(nn.Module):
    """As in the original FNO."""

    def __init__(self):
        super().__init__()
        self.weights1 = nn.Parameter(torch.randn(6, 5, 4, 3, dtype=torch.cfloat))
        self.weights2 = nn.Parameter(torch.randn(6, 5, 4, 3, dtype=torch.cfloat))


class Block(nn.Module):
    """Bare parameters of every number of dimensions, and a buffer that is no weight."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.randn(7, 5))
        self.experts = nn.Parameter(torch.randn(2, 3, 6, 5))
        self.complex = nn.Parameter(torch.randn(4, 6, dtype=torch.cfloat))
        self.row = nn.Parameter(torch.randn(1, 9))
        self.scale = nn.Parameter(torch.ones(5))
        self.register_buffer("attn_mask", torch.zeros(5, 5))
        self.register_buffer("relative_position_index", torch.zeros(5, 5, dtype=torch.long))


class Tied(nn.Module):
    """A head that is the table of embeddings, and two layers that are one."""

    def __init__(self):
        super().__init__()
        self.wte = nn.Embedding(11, 6)
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.head = nn.Linear(6, 11, bias=False)
        self.head.weight = self.wte.weight


class LoraLinear(nn.Module):
    """As in peft."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(12, 9)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(12, 3, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(3, 9, bias=False)})


def spectral(layer):
    """With a norm that power iteration has found."""
    normed = parametrizations.spectral_norm(layer, n_power_iterations=50)
    normed.train()
    _ = normed.weight
    return normed


def old_spectral(layer):
    normed = nn.utils.spectral_norm(layer, n_power_iterations=50)
    normed(torch.randn(2, 6))
    return normed


def old_weight_norm(layer, name="weight"):
    with pytest.warns(FutureWarning):
        return nn.utils.weight_norm(layer, name)


def pruned(layer):
    return prune.random_unstructured(layer, "weight", amount=0.4)


ZOO = {
    "linear": lambda: nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 4, bias=False), nn.LayerNorm(4)),
    "one linear": lambda: nn.Linear(6, 5),
    "convolutions": lambda: nn.Sequential(
        nn.Conv1d(3, 8, 5), nn.Conv2d(3, 8, 5), nn.BatchNorm2d(8), nn.Conv3d(3, 8, 2, bias=False)
    ),
    "transposed convolutions": lambda: nn.Sequential(
        nn.ConvTranspose1d(3, 8, 5), nn.ConvTranspose2d(8, 6, 3, groups=2), nn.ConvTranspose3d(3, 8, 2)
    ),
    "attention": lambda: nn.MultiheadAttention(8, 2),
    "attention of several widths": lambda: nn.MultiheadAttention(8, 2, kdim=6, vdim=5, bias=False),
    "transformer": lambda: nn.TransformerEncoderLayer(8, 2, 12),
    "recurrent": lambda: nn.ModuleList(
        [
            nn.RNN(5, 4, num_layers=2),
            nn.LSTM(5, 4, num_layers=2, bidirectional=True),
            nn.LSTM(5, 4, proj_size=3),
            nn.GRU(5, 4, bias=False),
            nn.RNNCell(5, 4),
            nn.LSTMCell(5, 4),
            nn.GRUCell(5, 4),
        ]
    ),
    "embeddings": lambda: nn.ModuleDict({"tok_embeddings": nn.Embedding(9, 6), "embed_out": nn.Linear(6, 9)}),
    "norms of several dimensions": lambda: nn.Sequential(nn.LayerNorm((5, 6)), nn.Linear(6, 5)),
    "conv1d of transformers": lambda: nn.Sequential(Conv1D(12, 4)),
    "fno": SpectralConv2d,
    "bare": Block,
    "tied": Tied,
    "weight_norm": lambda: nn.Sequential(
        parametrizations.weight_norm(nn.Linear(6, 5)),
        parametrizations.weight_norm(nn.Conv2d(3, 8, 5), dim=1),
        old_weight_norm(nn.Linear(6, 5)),
        old_weight_norm(nn.LSTM(5, 4), "weight_hh_l0"),
    ),
    "weight_norm of the whole": lambda: parametrizations.weight_norm(nn.Linear(6, 5), dim=None),
    "spectral_norm": lambda: nn.Sequential(
        spectral(nn.Linear(6, 6)),
        spectral(nn.Conv2d(3, 8, 5)),
        spectral(nn.ConvTranspose2d(8, 6, 3)),
        spectral(nn.ConvTranspose2d(8, 8, 3)),
        old_spectral(nn.Linear(6, 5)),
    ),
    "pruned": lambda: nn.Sequential(pruned(nn.Linear(6, 5)), pruned(nn.Conv2d(3, 8, 5))),
    "lora": lambda: nn.ModuleDict({"q_proj": LoraLinear()}),
    "half": lambda: nn.Linear(6, 5).to(torch.bfloat16),
    "DPOT": lambda: DPOT(img_size=16, patch_size=4, embed_dim=8, depth=1, n_blocks=2, out_layer_dim=4),
}
KIND_UNKNOWN = {("spectral_norm", "3")}  # as many inputs as outputs


def by_name(layers):
    return {layer.name: layer for layer in layers}


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("everything", [False, True])
def test_the_same_layers_as_in_the_model(name, everything):
    torch.manual_seed(0)
    model = ZOO[name]().eval()
    selection = Selection(embeddings=everything, low_rank_products=everything)
    expected = by_name(layer_weights(model, selection))
    found = by_name(checkpoint_weights(model.state_dict(), selection))
    assert found.keys() == expected.keys()
    for layer in expected.values():
        own = found[layer.name]
        assert (own.shape, bool(own.reason)) == (layer.shape, bool(layer.reason))
        if (name, layer.name) in KIND_UNKNOWN:
            torch.testing.assert_close(own.matrices.mT, layer.matrices)
            continue
        assert (own.kind, own.rank) == (layer.kind, layer.rank)
        assert own.layout == layer.layout
        torch.testing.assert_close(own.matrices, layer.matrices)


def test_order_is_the_models():
    model = ZOO["DPOT"]()
    assert [layer.name for layer in checkpoint_weights(model.state_dict())] == [w.name for w in layer_weights(model)]


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_fsdp_wrapped_module."])
def test_wrappers_are_left_out_of_names(prefix):
    state = {f"{prefix}{name}": tensor for name, tensor in ZOO["linear"]().state_dict().items()}
    assert [layer.name for layer in checkpoint_weights(state)] == ["0", "2"]


def test_a_module_called_module_keeps_its_name():
    state = {"module.weight": torch.randn(3, 4), "head.weight": torch.randn(2, 3)}
    assert [layer.name for layer in checkpoint_weights(state)] == ["module", "head"]


def test_a_file(tmp_path):
    model = ZOO["DPOT"]()
    torch.save({"state_dict": model.state_dict(), "optimizer_states": [{"exp_avg": torch.ones(5, 5)}]}, tmp_path / "a")
    found = by_name(checkpoint_weights(tmp_path / "a"))
    expected = by_name(layer_weights(model))
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name].matrices, layer.matrices) for name, layer in expected.items())


QUANTISED = {
    "int8": {"fc.weight": torch.ones(8, 6, dtype=torch.int8), "fc.SCB": torch.ones(8)},
    "uint8": {"fc.weight": torch.ones(24, 1, dtype=torch.uint8), "fc.weight.absmax": torch.ones(8)},
    "float8": {"fc.weight": torch.ones(8, 6).to(torch.float8_e4m3fn), "fc.weight_scale_inv": torch.ones(2, 3)},
    "int32": {"fc.qweight": torch.ones(8, 6, dtype=torch.int32), "fc.scales": torch.ones(2, 6)},
}


@pytest.mark.parametrize(("kind", "state"), QUANTISED.items())
def test_quantised_weights_are_rows_with_a_reason(kind, state):
    [layer] = checkpoint_weights(state)
    assert layer.name.startswith("fc")
    assert layer.matrices.numel() == 0
    assert f"quantised (torch.{kind}" in layer.reason
    assert "--dequantize" in layer.reason


def test_buffers_and_integers_are_left_out():
    state = {
        "bn.running_mean": torch.ones(4, 4),
        "bn.num_batches_tracked": torch.tensor(3),
        "attn.bias": torch.ones(1, 1, 6, 6, dtype=torch.bool),
        "attn.mask": torch.ones(6, 6),
        "position_ids": torch.arange(8)[None].repeat(3, 1),
        "rotary.cos_cached": torch.ones(8, 4),
    }
    assert list(checkpoint_weights(state)) == []


class Symmetric(nn.Module):
    """A parametrisation that a state dict does not tell."""

    def forward(self, weight):
        return weight.triu() + weight.triu(1).mT


def test_unknown_parametrisations_are_rows_with_a_reason():
    layer = nn.Linear(5, 5)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    [row] = checkpoint_weights(nn.Sequential(layer).state_dict())
    assert (row.name, row.shape) == ("0", (5, 5))
    assert "`0.weight` is parametrised in a way that a state dict does not tell (original)" in row.reason
    [row] = checkpoint_weights(nn.Sequential(parametrizations.orthogonal(nn.Linear(5, 5))).state_dict())
    assert "remove the parametrisation before saving" in row.reason


class WithoutValues(TorchDispatchMode):
    """Fails where anything is computed but shapes and types."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        results = result if isinstance(result, (tuple, list)) else [result]
        assert all(tensor.is_meta for tensor in results if isinstance(tensor, Tensor)), function
        return result


def outline(layers):
    return [(w.name, w.kind, w.shape, w.matrices.shape, w.matrices.dtype, w.rank, w.reason) for w in layers]


def unknown_parametrisation():
    layer = nn.Linear(5, 5)
    parametrize.register_parametrization(layer, "weight", Symmetric())
    return layer.state_dict()


STATES = {
    **{name: lambda make=make: make().state_dict() for name, make in ZOO.items()},
    **{kind: lambda state=state: state for kind, state in QUANTISED.items()},
    "unknown": unknown_parametrisation,
    "lora of a convolution": lambda: {
        "q.lora_A.weight": torch.ones(3, 8, 5, 5),
        "q.lora_B.weight": torch.ones(6, 3, 1, 1),
    },
}


@pytest.mark.parametrize("name", STATES)
@pytest.mark.parametrize("everything", [False, True])
def test_without_values(name, everything):
    state = STATES[name]()
    selection = Selection(embeddings=everything, low_rank_products=everything, min_size=4)
    with WithoutValues():
        found = list(checkpoint_weights(state, selection, values=False))
    assert found
    assert outline(found) == outline(checkpoint_weights(state, selection))
    assert all(layer.matrices.is_meta != bool(layer.reason) for layer in found)


@pytest.mark.parametrize("shards", [False, True])
def test_without_values_of_files(tmp_path, values_read, shards):
    state = {f"{zoo}.{name}": tensor.clone() for zoo in STATES for name, tensor in STATES[zoo]().items()}
    path = tmp_path / "model.safetensors"
    save_file(state, path)
    if shards:
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"weight_map": dict.fromkeys(state, "model.safetensors")}))
    selection = Selection(low_rank_products=True, exclude=("DPOT",))
    weights = checkpoint_weights(path, selection)
    found = outline(checkpoint_weights(path, selection, values=False))
    assert values_read == []
    assert found == outline(weights)
    assert len(values_read) > len(found)


def test_patterns_are_checked_without_values(values_read, tmp_path):
    state = STATES["DPOT"]()
    save_file(state, tmp_path / "a.safetensors")
    for selection, message in ((Selection(include=("blokcs",)), "blokcs"), (Selection(exclude=("blokcs",)), "blokcs")):
        with WithoutValues(), pytest.raises(ValueError, match=message):
            checkpoint_weights(state, selection)
        with pytest.raises(ValueError, match=message):
            checkpoint_changes(tmp_path / "a.safetensors", state, selection)
    assert values_read == []


def test_groups_are_taken_as_one():
    conv = nn.Conv2d(8, 12, 3, groups=2)
    [layer] = checkpoint_weights(conv.state_dict())
    [expected] = layer_weights(conv)
    together = expected.matrices.unflatten(0, (2, 9)).movedim(0, 1).flatten(1, 2)
    torch.testing.assert_close(layer.matrices, together)


def test_selection():
    state = ZOO["DPOT"]().state_dict()
    selection = Selection(include=("blocks.0",), exclude=("*.w1",), kinds=("parameter",))
    reasons = {layer.name: layer.reason for layer in checkpoint_weights(state, selection)}
    assert reasons["blocks.0.filter.w2"] == ""
    assert reasons["blocks.0.filter.w1"] == "excluded by the pattern '*.w1'"
    assert "its kind, 'convolution'" in reasons["blocks.0.mlp.0"]
    assert "matches no pattern" in reasons["pos_embed"]
    with pytest.raises(
        ValueError,
        match=r"`include` to match layers, but 'blokcs' matches none. The closest "
        r"are blocks",
    ):
        checkpoint_weights(state, Selection(include=("blokcs",)))


class Counting(Mapping):
    """Tensors that are made when asked for, and how many of them are alive."""

    def __init__(self, shapes):
        self.shapes, self.alive = shapes, []

    def __getitem__(self, name):
        tensor = torch.randn(self.shapes[name])
        self.alive.append(weakref.ref(tensor.untyped_storage()))
        return tensor

    def __iter__(self):
        return iter(self.shapes)

    def __len__(self):
        return len(self.shapes)


def test_one_weight_in_memory_at_a_time():
    tensors = Counting({f"{i}.weight": (32, 32) for i in range(20)})
    for layer in checkpoint_weights(tensors):
        assert layer.matrices.shape == (1, 32, 32)
        assert sum(reference() is not None for reference in tensors.alive) <= 1
    assert len(tensors.alive) >= 20


def test_changes():
    before, after = ZOO["DPOT"](), ZOO["DPOT"]()
    found = by_name(checkpoint_changes(after.state_dict(), before.state_dict()))
    later, earlier = by_name(layer_weights(after)), by_name(layer_weights(before))
    assert found.keys() == later.keys()
    for name, change in found.items():
        torch.testing.assert_close(change.matrices, later[name].matrices - earlier[name].matrices)


def test_changes_between_files_that_name_differently():
    before, after = nn.Linear(6, 5), nn.Linear(6, 5)
    state = {f"network.body.{name}": tensor for name, tensor in after.state_dict().items()}
    state["n_averaged"] = torch.tensor(3)  # of SWA
    base = {f"body.{name}": tensor for name, tensor in before.state_dict().items()}
    [change] = checkpoint_changes(state, base)
    assert change.name == "network.body"
    torch.testing.assert_close(change.matrices[0], (after.weight - before.weight).detach())


def test_changes_that_cannot_be():
    same, half = torch.randn(4, 4), torch.randn(4, 4).half()
    source = {"a.weight": torch.randn(4, 3), "b.weight": torch.randn(4, 3), "c.weight": same, "d.weight": half}
    base = {"b.weight": torch.randn(4, 2), "c.weight": same, "d.weight": half.float() + 1}
    found = by_name(checkpoint_changes(source, base))
    assert found["a"].reason == "the base has no such layer"
    assert found["b"].reason == "the base's weight is of another shape, 4x2"
    assert found["c"].reason == "unchanged from the base"
    assert found["d"].matrices.dtype == torch.float32
    torch.testing.assert_close(found["d"].matrices, torch.full((1, 4, 4), -1.0))


@pytest.mark.parametrize(
    ("names", "others", "expected"),
    [
        (["a.b", "c"], ["c", "d"], {"c": "c"}),
        (["net.a.x", "net.b"], ["a.x", "b", "c"], {"net.a.x": "a.x", "net.b": "b"}),
        (["a.x", "b"], ["m.net.a.x", "m.net.b"], {"a.x": "m.net.a.x", "b": "m.net.b"}),
        (["x.a"], ["y.a", "y.b"], {"x.a": "y.a"}),
        (["a"], [], {}),
        ([], ["a"], {}),
    ],
)
def test_match_names(names, others, expected):
    assert match_names(names, others) == expected


class ExpertGLU(nn.Module):
    """Experts one below the other, as DBRX has them."""

    def __init__(self):
        super().__init__()
        self.moe_num_experts = 4
        self.w1, self.w2 = (nn.Parameter(torch.randn(4 * 24, 20)) for _ in range(2))


class GroupedMLP(nn.Module):
    """Experts whose numbers follow each other in the first matrix, as Megatron has them."""

    def __init__(self):
        super().__init__()
        self.num_local_experts = 4
        self.weight1, self.weight2 = nn.Parameter(torch.randn(20, 4 * 24)), nn.Parameter(torch.randn(4 * 24, 20))


@pytest.mark.parametrize(
    ("experts", "config"),
    [(ExpertGLU, {"ffn_config": {"moe_num_experts": 4}}), (GroupedMLP, {"num_moe_experts": 4})],
)
def test_experts_in_one_matrix_come_apart(tmp_path, experts, config):
    model = nn.ModuleDict({"experts": experts()})
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    assert all("config.json" in weight.remark for weight in checkpoint_weights(tmp_path))
    (tmp_path / "config.json").write_text(json.dumps(config))
    for of_file, of_model in zip(checkpoint_weights(tmp_path), layer_weights(model), strict=True):
        assert (of_file.name, of_file.shape, of_file.remark) == (of_model.name, of_model.shape, "")
        assert torch.equal(of_file.matrices, of_model.matrices)
    first = next(iter(model["experts"].parameters()))
    expected = first.view(4, 20, 24) if experts is GroupedMLP else first.view(4, 24, 20)
    assert torch.equal(next(layer_weights(model)).matrices, expected)


def test_what_may_be_a_buffer_says_so():
    state = {"loss.centers": torch.randn(12, 12), "up.weight": torch.randn(12, 12), "attn.w_in": torch.randn(12, 12)}
    remarks = {weight.name: weight.remark for weight in checkpoint_weights(state)}
    assert remarks == {
        "loss.centers": "the file does not tell whether it is a parameter or a buffer",
        "up": "",
        "attn.w_in": "",
    }


@pytest.mark.parametrize(
    "buffers",
    [
        {"vq.embed": torch.ones(1, 12, 12), "vq.cluster_size": torch.ones(1, 12)},
        {"codebook.embed_sum": torch.ones(12, 12), "codebook.cluster_usage": torch.ones(12)},
        {"dense.weight_integer": torch.ones(12, 12)},
        {"norm.running_cov": torch.ones(12, 12)},
        {"head.tril": torch.ones(12, 12)},
        {"attn.k_cache": torch.ones(12, 12)},
        {"moe.local_tokens_per_expert": torch.ones(12, 12)},
    ],
    ids=str,
)
def test_more_buffers_are_left_out(buffers):
    assert [weight.name for weight in checkpoint_weights({"q.weight": torch.ones(12, 12), **buffers})] == ["q"]


def test_weights_that_are_tied_in_the_base_alone_have_their_changes():
    """An output layer that fine-tuning has set free from the table of embeddings."""
    table = torch.randn(14, 12)
    base = {"embed_tokens.weight": table, "lm_head.weight": table}
    tuned = {"embed_tokens.weight": table.clone(), "lm_head.weight": table + 1}
    changes = {change.name: change for change in checkpoint_changes(tuned, base, Selection(embeddings=True))}
    assert changes["lm_head"].reason == ""
    torch.testing.assert_close(changes["lm_head"].matrices[0], torch.ones(14, 12))
    assert changes["embed_tokens"].reason == "unchanged from the base"


def test_a_tensor_called_as_the_module_of_another_has_a_row_of_its_own():
    state = {"a.b": torch.randn(30, 12), "a.b.weight": torch.randn(20, 12)}
    report = analyze_weights(checkpoint_weights(state))
    assert [(row.name, row.shape) for row in report] == [("a.b", (30, 12)), ("a.b.weight", (20, 12))]
    assert [change.name for change in checkpoint_changes(state, state)] == ["a.b", "a.b.weight"]
