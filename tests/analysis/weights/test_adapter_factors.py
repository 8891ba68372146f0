"""Updates with further factors, in a model and in a file: the product as it takes effect, or the reason why not."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_farms.analysis import Selection, analyze_weights, checkpoint_weights, layer_weights

PRODUCTS = Selection(kinds=("low-rank product",))


def holder(**tensors):
    """A module that holds factors as peft's layers do."""
    module = nn.Module()
    for name, tensor in tensors.items():
        setattr(module, name, nn.ParameterDict({"default": nn.Parameter(tensor)}))
    return nn.ModuleDict({"q": module})


def products(weights):
    return [weight for weight in weights if weight.kind == "low-rank product" and not weight.reason]


def both(model):
    return products(layer_weights(model, PRODUCTS)), products(checkpoint_weights(model.state_dict(), PRODUCTS))


def test_adalora_has_a_diagonal():
    torch.manual_seed(0)
    down, up, diagonal = torch.randn(5, 12), torch.randn(9, 5), torch.tensor([1.0, 0.0, -2.0, 0.5, 3.0]).unsqueeze(1)
    for found in both(holder(lora_A=down, lora_B=up, lora_E=diagonal)):
        [weight] = found
        torch.testing.assert_close(weight.matrices[0], up @ torch.diag(diagonal[:, 0]) @ down)
        assert weight.rank == 4
        assert weight.name == "q.lora.default"


def fused(rows, rank=3, inputs=8):
    torch.manual_seed(0)
    return torch.randn(3 * rank, inputs), torch.randn(rows, rank)


@pytest.mark.parametrize(("rows", "sizes"), [(24, [8, 8, 8]), (16, [8, 4, 4]), (12, [4, 4, 4])])
def test_parts_of_a_fused_projection(rows, sizes):
    down, up = fused(rows)
    expected = [b @ a for a, b in zip(down.split(3), up.split(sizes), strict=True)]
    module = nn.Module()
    module.lora_A, module.lora_B, module.scaling = nn.Parameter(down), nn.Parameter(up), 1.0
    if sizes == [4, 4, 4]:
        module.qkv_shapes = sizes  # the shapes alone would say 8, 2 and 2
    found = products(layer_weights(nn.ModuleDict({"q": module}), PRODUCTS))
    if sizes != [4, 4, 4]:
        found += products(checkpoint_weights({"q.lora_A": down, "q.lora_B": up}, PRODUCTS))
    for weight in found:
        assert len(weight.matrices) == 3
        for matrix, part in zip(weight.matrices, expected, strict=True):
            torch.testing.assert_close(matrix[: len(part)], part)
            assert not matrix[len(part) :].any()


def test_the_config_beside_the_file_names_the_parts(tmp_path):
    down, up = fused(12)
    torch.save({"q.lora_A": down, "q.lora_B": up}, tmp_path / "a.pt")
    (tmp_path / "config.json").write_text(json.dumps({"num_attention_heads": 2, "head_dim": 2}))
    [weight] = products(checkpoint_weights(tmp_path / "a.pt", PRODUCTS))
    torch.testing.assert_close(weight.matrices[1], up[4:8] @ down[3:6])


def test_factors_stored_transposed():
    torch.manual_seed(0)
    down, up = torch.randn(12, 5), torch.randn(5, 9)
    [weight] = products(checkpoint_weights({"q.lora_A": down, "q.lora_B": up}, PRODUCTS))
    torch.testing.assert_close(weight.matrices[0], (down @ up).T)


def test_locons_core():
    torch.manual_seed(0)
    down, core, up = torch.randn(4, 6, 1, 1), torch.randn(4, 4, 3, 3), torch.randn(7, 4, 1, 1)
    state = {"c.lora_down.weight": down, "c.lora_mid.weight": core, "c.lora_up.weight": up}
    [weight] = products(checkpoint_weights(state, PRODUCTS))
    x = torch.randn(1, 6, 5, 5)
    expected = nn.functional.conv2d(nn.functional.conv2d(nn.functional.conv2d(x, down), core), up)
    kernel = weight.matrices.unflatten(0, (3, 3)).permute(2, 3, 0, 1)
    torch.testing.assert_close(nn.functional.conv2d(x, kernel), expected, rtol=1e-4, atol=1e-4)


def test_dora_has_a_reason():
    model = holder(lora_A=torch.randn(5, 12), lora_B=torch.randn(9, 5), lora_magnitude_vector=torch.randn(9))
    for weights in (layer_weights(model, PRODUCTS), checkpoint_weights(model.state_dict(), PRODUCTS)):
        [weight] = weights
        assert weight.reason.startswith("DoRA rescales the weight")


@pytest.mark.parametrize("selection", [Selection(), Selection(low_rank_products=False)])
def test_factors_of_other_updates_are_no_weights(selection):
    names = ["hada_w1_a", "hada_w2_b", "lokr_w1", "lokr_w2_a", "vera_A", "vera_B", "oft_r", "boft_R"]
    names.append("trainable_tokens_delta")
    model = holder(**{name: torch.randn(12, 14) for name in names})
    for weights in (layer_weights(model, selection), checkpoint_weights(model.state_dict(), selection)):
        found = {weight.name: weight.reason for weight in weights}
        assert found.keys() == {f"q.{name}.default" for name in names}
        assert all("not a weight; merge the update" in reason for reason in found.values())


SCALES = {
    "alpha by rank": ({"lora_alpha": 8}, 2.0),
    "rank-stabilised": ({"lora_alpha": 8, "use_rslora": True}, 4.0),
    "alpha of the module": ({"lora_alpha": 8, "alpha_pattern": {"k": 99, "q": 12}}, 3.0),
    "alpha by an expression": ({"lora_alpha": 8, "alpha_pattern": {"^q": 99, r"\w\.[qk]": 12}}, 3.0),
    "an expression that takes forever": ({"lora_alpha": 8, "alpha_pattern": {"(([a-z.]+)+)+!": 12}}, 2.0),
    "no config": ({}, 1.0),
}


@pytest.mark.parametrize("case", SCALES)
def test_the_adapters_config_tells_the_scale(case, tmp_path):
    config, scale = SCALES[case]
    torch.manual_seed(0)
    down, up = torch.randn(4, 12), torch.randn(9, 4)
    save_file({"m.q.lora_A.weight": down, "m.q.lora_B.weight": up}, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, **config}))
    [weight] = products(checkpoint_weights(tmp_path, PRODUCTS))
    torch.testing.assert_close(weight.matrices[0], scale * up @ down)


@pytest.mark.parametrize(
    ("first", "second", "name"),
    [
        ("m.q.lora_down.weight", "m.q.lora_up.weight", "m.q.lora"),
        ("m.q.lora.down.weight", "m.q.lora.up.weight", "m.q.lora"),
        ("m.to_q_lora.down.weight", "m.to_q_lora.up.weight", "m.to_q.lora"),
        ("m.q.lora_linear_layer.down.weight", "m.q.lora_linear_layer.up.weight", "m.q.lora"),
        ("m.qkv_lora2.down.weight", "m.qkv_lora2.up.weight", "m.qkv.lora2"),  # beside lora1
        ("m.q.lora_a.weight", "m.q.lora_b.weight", "m.q.lora"),  # torchtune
    ],
)
def test_pairs_of_other_programs_and_their_alpha(first, second, name):
    torch.manual_seed(0)
    down, up = torch.randn(4, 12), torch.randn(9, 4)
    module = name.rpartition(".")[0]
    state = {first: down, second: up, f"{module}.alpha": torch.tensor(2.0)}
    [weight] = checkpoint_weights(state, PRODUCTS)
    assert (weight.name, weight.kind, weight.rank) == (name, "low-rank product", 4)
    torch.testing.assert_close(weight.matrices[0], 0.5 * up @ down)


def test_mlx_stores_factors_transposed(tmp_path):
    torch.manual_seed(0)
    first, second = torch.randn(16, 4), torch.randn(4, 16)
    save_file({"m.q.lora_a": first, "m.q.lora_b": second}, tmp_path / "adapters.safetensors")
    (tmp_path / "adapter_config.json").write_text(json.dumps({"lora_parameters": {"rank": 4, "scale": 20.0}}))
    [weight] = checkpoint_weights(tmp_path, PRODUCTS)
    torch.testing.assert_close(weight.matrices[0], 20 * (first @ second).T)


def test_factors_of_control_loras():
    state = {"lora_controlnet": torch.zeros(0), "m.down": torch.randn(4, 12), "m.up": torch.randn(9, 4)}
    [weight] = checkpoint_weights(state, PRODUCTS)
    torch.testing.assert_close(weight.matrices[0], state["m.up"] @ state["m.down"])


class Torchtunes(nn.Module):
    """Its LoRALinear."""

    def __init__(self):
        super().__init__()
        self.rank, self.alpha = 4, 8.0
        self.lora_a, self.lora_b = nn.Linear(12, 4, bias=False), nn.Linear(4, 9, bias=False)


def test_factors_of_torchtune():
    model = nn.ModuleDict({"q": Torchtunes()})
    layer = model["q"]
    [weight] = layer_weights(model, PRODUCTS)
    assert weight.name == "q.lora"
    torch.testing.assert_close(weight.matrices[0], (2 * layer.lora_b.weight @ layer.lora_a.weight).detach())


def test_dora_of_other_programs_has_a_reason():
    state = {"m.lora_down.weight": torch.randn(4, 12), "m.lora_up.weight": torch.randn(9, 4)}
    [weight] = checkpoint_weights({**state, "m.dora_scale": torch.ones(9, 1)}, PRODUCTS)
    assert "DoRA" in weight.reason


def test_the_adapters_config_tells_dora(tmp_path):
    save_file(
        {"q.lora_A.weight": torch.ones(4, 12), "q.lora_B.weight": torch.ones(9, 4)},
        tmp_path / "adapter_model.safetensors",
    )
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 4, "use_dora": True}))
    [weight] = checkpoint_weights(tmp_path, PRODUCTS)
    assert "DoRA" in weight.reason


@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("gralora", "q.gralora_A.default"),
        ("delora", "q.delora_B"),
        ("randlora", "base_model.randlora_B"),
        ("vblora", "q.vblora_vector_bank"),
        ("miss", "q.miss_block"),
        ("poly_lora", "q.poly_lora_A"),
        ("hira", "q.hira_A.weight"),
    ],
)
def test_factors_of_other_families_are_no_weights(family, name):
    """Of a file, and of a module whose parameter has that name, also where a pair of LoRA's could be seen."""
    state = {name: torch.randn(24, 24), name.replace("_A", "_B"): torch.randn(24, 24)}
    for weight in checkpoint_weights(state, PRODUCTS):
        assert f"an adapter ({family})" in weight.reason
        assert weight.matrices.numel() == 0
    module = nn.Module()
    module.register_parameter(name.split(".")[1], nn.Parameter(torch.randn(24, 24)))
    [weight] = layer_weights(nn.ModuleDict({"q": module}), PRODUCTS)
    assert f"an adapter ({family})" in weight.reason


def test_tables_of_embeddings_within_adapters_are_embeddings():
    for around in ("base_layer", "modules_to_save.default", "original_module", "token_adapter.base_layer"):
        [layer] = checkpoint_weights({f"embed_tokens.{around}.weight": torch.randn(40, 12)})
        assert (layer.kind, layer.reason[:10]) == ("embedding", "embeddings")


class ParamWrapper(nn.Module):
    """peft's LoRA of a parameter that holds several experts: A (experts r, inputs), B (outputs, r experts)."""

    def __init__(self, experts=3, rank=4, inputs=12, outputs=10):
        super().__init__()
        self.num_experts, self.parameter_name, self.scaling = experts, "up", {"default": 0.5}
        self.lora_A = nn.ModuleDict({"default": nn.Linear(inputs, experts * rank, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(experts * rank, outputs, bias=False)})

    def update(self):
        first = self.lora_A["default"].weight.detach().reshape(self.num_experts, -1, 12)
        second = self.lora_B["default"].weight.detach().reshape(10, -1, self.num_experts)
        return self.scaling["default"] * torch.einsum("ore,eri->eoi", second, first)


def test_experts_in_one_parameter_have_an_update_each(tmp_path):
    model = nn.ModuleDict({"mlp": nn.ModuleDict({"experts": ParamWrapper()})})
    wrapper = model["mlp"]["experts"]
    (weight,) = layer_weights(model)
    assert (weight.name, weight.shape, weight.rank) == ("mlp.experts.lora.default", (3, 10, 12), 4)
    torch.testing.assert_close(weight.matrices, wrapper.update())
    prefix = "base_model.model.mlp.experts.lora_"
    state = {
        f"{prefix}A.weight": wrapper.lora_A["default"].weight,
        f"{prefix}B.weight": wrapper.lora_B["default"].weight,
    }
    torch.save(state, tmp_path / "adapter_model.bin")
    (untold,) = checkpoint_weights(tmp_path / "adapter_model.bin")
    assert untold.reason.startswith(
        "its factors are those of several experts, and no adapter_config.json beside the file tells how many"
    )
    config = {"r": 4, "lora_alpha": 2, "target_parameters": ["mlp.experts.up"]}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    (stored,) = checkpoint_weights(tmp_path / "adapter_model.bin")
    assert (stored.shape, stored.rank) == ((3, 10, 12), 4)
    torch.testing.assert_close(stored.matrices, wrapper.update())
    (tmp_path / "adapter_config.json").write_text(json.dumps({**config, "rank_pattern": {"experts.up": 2}}))
    assert next(checkpoint_weights(tmp_path / "adapter_model.bin")).reason == untold.reason
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    report = analyze_weights(checkpoint_weights(tmp_path / "adapter_model.bin"))
    assert report[stored.name].eigenvalue_count == 24  # 3 experts, 2 windows, rank 4


def test_factors_that_are_not_of_so_many_experts_say_so():
    module = ParamWrapper()
    module.num_experts = 5
    weight = next(layer_weights(nn.Sequential(module)))
    assert "are not those of 5 experts" in weight.reason
