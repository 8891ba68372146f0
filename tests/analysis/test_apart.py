"""Rows for experts, and for queries, keys and values, against slices by hand of models built from configurations."""

import json

import pytest
import torch
import transformers
from safetensors.torch import save_file
from torch import nn

from lightning_farms.analysis import (
    LayerWeight,
    Selection,
    analyze,
    checkpoint_weights,
    layer_weights,
    open_checkpoint,
    weights_apart,
)
from lightning_farms.analysis.apart import model_config

SMALL = {"num_hidden_layers": 1, "vocab_size": 50}
H, HEADS, SHARED, SIZE = 32, 4, 2, 8


def concatenated(weight, shared=HEADS):
    return weight.split([HEADS * SIZE, shared * SIZE, shared * SIZE])


def by_group(weight, shared):
    groups = weight.view(shared, HEADS // shared + 2, SIZE, H)
    parts = groups[:, :-2], groups[:, -2:-1], groups[:, -1:]
    return [part.reshape(-1, H) for part in parts]


def falcon(**options):
    return transformers.FalconConfig(hidden_size=H, num_attention_heads=HEADS, **SMALL, **options)


CASES = {
    "GPT-2": (
        transformers.GPT2Config(n_embd=H, n_head=HEADS, n_layer=1, vocab_size=50),
        "h.0.attn.c_attn",
        lambda weight: concatenated(weight.T),
    ),
    "GPTBigCode": (
        transformers.GPTBigCodeConfig(n_embd=H, n_head=HEADS, n_layer=1, vocab_size=50, multi_query=True),
        "h.0.attn.c_attn",
        lambda weight: concatenated(weight, 1),
    ),
    "GPT-NeoX": (
        transformers.GPTNeoXConfig(hidden_size=H, num_attention_heads=HEADS, intermediate_size=H, **SMALL),
        "layers.0.attention.query_key_value",
        lambda weight: weight.view(HEADS, 3, SIZE, H).transpose(0, 1).reshape(3, -1, H),
    ),
    "BLOOM": (
        transformers.BloomConfig(hidden_size=H, n_head=HEADS, n_layer=1, vocab_size=50),
        "h.0.self_attention.query_key_value",
        lambda weight: weight.view(HEADS, 3, SIZE, H).transpose(0, 1).reshape(3, -1, H),
    ),
    "Falcon, one key for all": (
        falcon(multi_query=True, new_decoder_architecture=False),
        "h.0.self_attention.query_key_value",
        lambda weight: concatenated(weight, 1),
    ),
    "Falcon, grouped": (
        falcon(num_kv_heads=SHARED, new_decoder_architecture=True),
        "h.0.self_attention.query_key_value",
        lambda weight: by_group(weight, SHARED),
    ),
    "Falcon, plain": (
        falcon(multi_query=False, new_decoder_architecture=False),
        "h.0.self_attention.query_key_value",
        lambda weight: by_group(weight, HEADS),
    ),
    "Phi-3": (
        transformers.Phi3Config(
            hidden_size=H,
            num_attention_heads=HEADS,
            num_key_value_heads=SHARED,
            intermediate_size=H,
            pad_token_id=0,
            **SMALL,
        ),
        "layers.0.self_attn.qkv_proj",
        lambda weight: concatenated(weight, SHARED),
    ),
    "MPT": (
        transformers.MptConfig(d_model=H, n_heads=HEADS, n_layers=1, vocab_size=50),
        "blocks.0.attn.Wqkv",
        concatenated,
    ),
    "Persimmon": (
        transformers.PersimmonConfig(
            hidden_size=H, num_attention_heads=HEADS, intermediate_size=H, pad_token_id=0, **SMALL
        ),
        "layers.0.self_attn.query_key_value",
        lambda weight: by_group(weight, HEADS),
    ),
    "ModernBERT": (
        transformers.ModernBertConfig(
            hidden_size=H, num_attention_heads=HEADS, intermediate_size=H, pad_token_id=0, **SMALL
        ),
        "layers.0.attn.Wqkv",
        concatenated,
    ),
}


@pytest.fixture(scope="module", params=CASES)
def case(request, tmp_path_factory):
    """A model from a configuration, its checkpoint, the fused layer's name and its parts by hand."""
    config, name, parts = CASES[request.param]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    folder = tmp_path_factory.mktemp("model")
    save_file(
        {key: tensor.contiguous().clone() for key, tensor in model.state_dict().items()}, folder / "model.safetensors"
    )
    config.to_json_file(folder / "config.json", use_diff=False)
    weight = model.get_submodule(name).weight.detach()
    return model, folder, name, dict(zip("qkv", parts(weight), strict=True))


def matrices(weights):
    return {weight.name: weight.matrices[0] for weight in weights if not weight.reason}


def test_queries_keys_and_values_are_the_slices_by_hand(case):
    model, folder, name, parts = case
    of_model = matrices(weights_apart(layer_weights(model), ["qkv"], model_config(model)))
    of_file = matrices(weights_apart(checkpoint_weights(folder), ["qkv"], open_checkpoint(folder).config))
    whole = matrices(layer_weights(model))
    assert name not in of_model
    for part, expected in parts.items():
        for found in (of_model, of_file):
            torch.testing.assert_close(found[f"{name}.{part}"], expected, rtol=0, atol=0)
    assert of_model.keys() == of_file.keys() == (whole.keys() - {name}) | {f"{name}.{part}" for part in "qkv"}


def attended(model, name, part, factor):
    """What goes into the output projection, with one part of the fused weight (and bias) scaled."""
    fused_layer, attention = model.get_submodule(name), model.get_submodule(name.rpartition(".")[0])
    projection = next(module for key, module in attention.named_children() if key in OUTPUTS)
    stored = {key: parameter.detach().clone() for key, parameter in fused_layer.named_parameters()}
    [found] = (w for w in layer_weights(model) if w.name == name)
    scaled = {w.name: w.matrices[0] for w in weights_apart([found], ["qkv"], model_config(model))}[f"{name}.{part}"]
    rows = (found.matrices[0][:, None] == scaled).all(-1).any(1)  # rows of random numbers are all different
    seen = []
    with (
        projection.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].detach())),
        torch.no_grad(),
    ):
        for key, parameter in fused_layer.named_parameters():
            transposed = key == "weight" and parameter.shape[0] < parameter.shape[1]  # GPT-2's
            (parameter.T if transposed else parameter)[rows] *= factor
        model(input_ids=torch.arange(7)[None])
        for key, parameter in fused_layer.named_parameters():
            parameter.copy_(stored[key])
    return seen[0]


OUTPUTS = ("c_proj", "dense", "out_proj", "o_proj", "Wo")


def test_the_parts_do_in_the_model_what_their_names_say(case):
    model, _, name, _ = case
    model.eval()
    plain = attended(model, name, "v", 1.0)
    assert plain.abs().max() > 0
    assert attended(model, name, "v", 0.0).abs().max() == 0
    torch.testing.assert_close(attended(model, name, "v", 2.0), 2 * plain)
    torch.testing.assert_close(attended(model, name, "q", 2.0), attended(model, name, "k", 2.0), rtol=1e-3, atol=1e-4)


def test_rows_of_a_report():
    config, name, parts = CASES["GPT-NeoX"]
    torch.manual_seed(0)
    model = transformers.AutoModel.from_config(config)
    report = analyze(model, apart=["qkv"])
    for part, weight in zip("qkv", parts(model.get_submodule(name).weight.detach()), strict=True):
        alone = nn.Linear(H, H, bias=False)
        alone.weight.data = weight
        assert report[f"{name}.{part}"].alpha == pytest.approx(analyze(alone)["weight"].alpha, rel=1e-6)
        assert report[f"{name}.{part}"].shape == (H, H)
    assert name in analyze(model).alphas


def fused(name, *shape):
    return LayerWeight(name, "linear", shape, torch.randn(1, *shape), ())


def test_litgpt_has_both_arrangements():
    config = {"n_head": HEADS, "n_query_groups": SHARED, "n_embd": H, "head_size": SIZE}
    weight = torch.randn((HEADS + 2 * SHARED) * SIZE, H)
    for leaf, parts in (("attn", by_group(weight, SHARED)), ("qkv", concatenated(weight, SHARED))):
        layer = fused(f"transformer.h.0.attn.{leaf}", *weight.shape)._replace(matrices=weight[None])
        found = matrices(weights_apart([layer], ["qkv"], config))
        for part, expected in zip("qkv", parts, strict=True):
            assert torch.equal(found[f"{layer.name}.{part}"], expected)


def test_a_part_of_a_model_has_its_own_configuration():
    config = {
        "model_type": "some_vlm",
        "text_config": {"model_type": "phi3", "hidden_size": 32, "num_attention_heads": 4, "num_key_value_heads": 1},
        "vision_config": {"hidden_size": 24, "num_heads": 3},
    }
    weights = [fused("text.qkv_proj", 48, 32), fused("visual.blocks.0.attn.qkv", 72, 24), fused("other.qkv", 30, 10)]
    shapes = {w.name: w.shape for w in weights_apart(weights, ["qkv"], config)}
    assert shapes["text.qkv_proj.k"] == (8, 32)
    assert shapes["visual.blocks.0.attn.qkv.v"] == (24, 24)
    assert shapes["other.qkv.q"] == (10, 10)


@pytest.mark.parametrize(
    ("weight", "config", "remark"),
    [
        (fused("attn.qkv", 30, 10), {}, "no configuration beside the weights"),
        (
            fused("attn.query_key_value", 96, 32),
            {"model_type": "unheard_of", "n_head": 4, "hidden_size": 32},
            "96 rows",
        ),
        (fused("attn.qkv_proj", 96, 32), {"model_type": "codegen", "n_head": 4, "n_embd": 32}, "96 rows"),
        (fused("attn.c_attn", 90, 32), {"model_type": "gpt2", "n_head": 4, "n_embd": 32}, "90 rows"),
    ],
)
def test_what_is_not_told_stays_whole_and_says_so(weight, config, remark):
    [found] = weights_apart([weight], ["qkv"], config)
    assert found.remark.startswith("queries, keys and values are not taken apart: ")
    assert remark in found.remark
    assert found._replace(remark="") == weight


def test_a_configuration_without_heads_leaves_a_guess_that_is_said():
    """timm's: in TinyViT and MaxViT the rows lie head by head."""
    weights = list(checkpoint_weights({"blocks.0.attn.qkv.weight": torch.randn(3 * H, H)}))
    parts = list(weights_apart(weights, ("qkv",), {"architecture": "tiny_vit_5m_224"}))
    assert [part.name for part in parts] == [f"blocks.0.attn.qkv.{part}" for part in "qkv"]
    assert all("are taken to lie one below the other" in part.remark for part in parts)
    told = weights_apart(weights, ("qkv",), {"num_attention_heads": HEADS, "hidden_size": H})
    assert all(part.remark == "" for part in told)


def test_keys_and_values_of_cross_attention():
    names = [w.name for w in weights_apart([fused("h.0.crossattention.c_attn", 64, 32)], ["qkv"], {"n_head": 4})]
    assert names == ["h.0.crossattention.c_attn.k", "h.0.crossattention.c_attn.v"]


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.gate_up_proj = nn.Parameter(torch.randn(3, 32, 24))
        self.down_proj = nn.Parameter(torch.randn(3, 24, 16))
        self.gate_up_proj_bias = nn.Parameter(torch.randn(3, 24))


class Mixture(nn.Module):
    """Fused experts, experts in a list, a batch of matrices that is none of experts, and a router."""

    def __init__(self):
        super().__init__()
        self.experts = Experts()
        self.more = nn.ModuleDict({"experts": nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])})
        self.batch = nn.Parameter(torch.randn(3, 16, 16))
        self.router = nn.Linear(32, 3)


def test_experts_have_a_row_each():
    torch.manual_seed(0)
    model = Mixture()
    pooled, report = analyze(model), analyze(model, apart=["experts"])
    each = {f"experts.{name}[{i}]" for name in ("gate_up_proj", "down_proj") for i in range(3)}
    assert set(report.alphas) == set(pooled.alphas) - {"experts.gate_up_proj", "experts.down_proj"} | each
    assert {"more.experts.0", "more.experts.1", "batch"} < set(report.alphas)
    alone = nn.Linear(24, 32, bias=False)
    for index in range(3):
        alone.weight.data = model.experts.gate_up_proj.data[index]
        row = report[f"experts.gate_up_proj[{index}]"]
        assert row.alpha == pytest.approx(analyze(alone)["weight"].alpha, rel=1e-6)
        assert row.shape == (32, 24)


def test_experts_of_a_file_and_of_a_change(tmp_path):
    torch.manual_seed(0)
    model = Mixture()
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    of_file = [w.name for w in weights_apart(checkpoint_weights(tmp_path), ["experts"], {}) if not w.reason]
    assert sorted(of_file) == sorted(
        w.name for w in weights_apart(layer_weights(model), ["experts"], {}) if not w.reason
    )
    torch.manual_seed(1)
    change = analyze(Mixture(), base=model, apart=["experts"])
    assert change["experts.down_proj[2]"].alpha > 1


def test_what_is_left_out_passes_whole():
    model = Mixture()
    selection = Selection(exclude=("experts",))
    reasons = {w.name: w.reason for w in weights_apart(layer_weights(model, selection), ["experts", "qkv"], {})}
    assert reasons["experts.down_proj"] == "excluded by the pattern 'experts'"


@pytest.mark.parametrize("apart", [["heads"], "qkv"])
def test_unknown_parts(apart):
    with pytest.raises(ValueError, match="`apart` to be of experts, qkv, but got"):
        weights_apart([], apart, {})


def test_a_configuration_is_a_dictionary_a_dataclass_or_has_to_dict():
    model = nn.Sequential(nn.Linear(2, 2))
    assert model_config(model) == {}
    model[0].config = {"n_head": 4}
    assert model_config(model) == {"n_head": 4}
    model.config = transformers.GPT2Config(n_head=2)
    assert model_config(model)["n_head"] == 2
    assert json.dumps(model_config(model)["model_type"]) == '"gpt2"'
