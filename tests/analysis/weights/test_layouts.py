"""Kernels and batches whose class is not PyTorch's: a model and its file have the same matrices."""

import json

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lightning_farms.analysis import checkpoint_weights, layer_weights


def bare(name, shape, **attributes):
    """A module of a class of that name with a `weight`."""
    module = type(name, (nn.Module,), {})()
    module.weight = nn.Parameter(torch.randn(shape))
    for key, value in attributes.items():
        setattr(module, key, value)
    return module


def positions(weight, order):
    return weight.permute(order).flatten(0, -3)


CASES = {
    "deformable": (bare("DeformConv2d", (16, 12, 3, 3), groups=1), (2, 3, 0, 1), "convolution"),
    "a user's": (bare("EqualizedConv1d", (16, 12, 5)), (2, 0, 1), "convolution"),
    "sparse in 3-D": (bare("SubMConv3d", (16, 3, 3, 3, 12), out_channels=16), (1, 2, 3, 0, 4), "convolution"),
    "sparse in 2-D": (bare("SparseConv2d", (16, 2, 2, 12), out_channels=16), (1, 2, 0, 3), "convolution"),
    "experts": (bare("ParallelExperts", (6, 20, 40)), (0, 1, 2), "parameter"),
}


@pytest.mark.parametrize("case", CASES)
def test_model_and_file_have_the_same_matrices(case):
    module, order, kind = CASES[case]
    expected = positions(module.weight.detach(), order)
    model = nn.ModuleDict({"layer": module})
    for weights in (layer_weights(model), checkpoint_weights(model.state_dict())):
        [weight] = weights
        assert (weight.name, weight.kind, weight.reason) == ("layer", kind, "")
        assert torch.equal(weight.matrices, expected)


ONE_PLACE = {(16, 12, 1): "oik", (16, 12, 1, 1): "oikk", (4, 16, 12, 1, 1, 1): "boikkk", (1, 16, 12, 1, 1): "boikk"}


@pytest.mark.parametrize("name", ["weight", "w"])
@pytest.mark.parametrize("shape", ONE_PLACE)
def test_kernels_of_one_place(shape, name):
    """Such as of the layer that StyleGAN makes colours with: no dimension but two says more than 1."""
    model = nn.ModuleDict({"layer": nn.Module()})
    model["layer"].register_parameter(name, nn.Parameter(torch.randn(shape)))
    for weights in (layer_weights(model), checkpoint_weights(model.state_dict())):
        [weight] = weights
        assert (weight.kind, weight.layout) == ("convolution", ONE_PLACE[shape])
        assert torch.equal(weight.matrices, model["layer"].get_parameter(name).detach().reshape(-1, 16, 12))


@pytest.mark.parametrize("shape", [(1, 16, 12, 3, 3), (1, 3, 12, 1, 1), (4, 16, 12, 5, 5)])
@pytest.mark.parametrize("name", ["weight", "kernels"])
def test_several_kernels_in_one_parameter(shape, name):
    """Of modulated convolutions (StyleGAN 2), and of dynamic ones."""
    model = nn.ModuleDict({"layer": nn.Module()})
    model["layer"].register_parameter(name, nn.Parameter(torch.randn(shape)))
    expected = model["layer"].get_parameter(name).detach().permute(0, 3, 4, 1, 2).flatten(0, 2)
    for weights in (layer_weights(model), checkpoint_weights(model.state_dict())):
        [weight] = weights
        assert (weight.kind, weight.layout) == ("convolution", "boikk")
        assert torch.equal(weight.matrices, expected)
        assert "guessed by its shape as boikk; " in weight.remark
        assert weight.remark.endswith("PATTERN=oikkk")


def test_numbers_for_channels_are_no_kernels():
    model = nn.Module()
    for name, shape in {"scale": (1, 16, 1, 1), "temperature": (8, 1, 1), "mixed": (16, 1, 4)}.items():
        model.register_parameter(name, nn.Parameter(torch.randn(shape)))
    assert not list(layer_weights(model))
    assert not list(checkpoint_weights(model.state_dict()))


@pytest.mark.parametrize("kind", ["CohereLayerNorm", "RMSNorm2d", "RMSNormGated"])
def test_factors_of_norms_are_no_matrices_whatever_their_shape(kind):
    """One for each feature of each head."""
    model = nn.ModuleDict(
        {"q_norm": bare(kind, (12, 16)), "fc": nn.Linear(16, 12), "up": bare("SpectralNorm", (24, 16))}
    )
    model["k_norm_2"] = nn.LayerNorm((12, 16), bias=False)
    assert [weight.name for weight in layer_weights(model)] == ["fc", "up"]
    assert [weight.name for weight in checkpoint_weights(model.state_dict())] == ["fc", "up"]


def test_heads_behind_the_inputs_are_said():
    model = nn.Module()
    model.q, model.gate = nn.Parameter(torch.randn(64, 4, 16)), nn.Parameter(torch.randn(8, 16, 16))
    for weights in (layer_weights(model), checkpoint_weights(model.state_dict())):
        remarks = {weight.name: weight.remark for weight in weights}
        assert remarks["q"].startswith("its layout is guessed by its shape as batch; ")
        assert remarks["gate"] == ""


def test_groups_of_a_foreign_convolution():
    module = bare("DeformConv2d", (16, 3, 3, 3), groups=4)
    [weight] = layer_weights(module)
    assert weight.matrices.shape == (36, 4, 3)
    assert torch.equal(weight.matrices[10], module.weight.detach()[4:8, :, 0, 1])


def test_older_sparse_kernels_have_the_outputs_last():
    module = bare("SubMConv3d", (3, 3, 3, 12, 16), out_channels=16)
    [weight] = layer_weights(module)
    assert torch.equal(weight.matrices[5], module.weight.detach()[0, 1, 2].T)


@pytest.mark.parametrize("shape", [(9, 20, 12), (9, 20, 40), (9, 6, 3), (9, 40, 40), (3, 9, 20, 12)])
def test_one_bias_for_all_matrices_tells_a_batch(shape):
    """Such as of relational graph convolutions, (relations, inputs, outputs)."""
    outputs = shape[-1]
    module = bare("Relations", shape, bias=nn.Parameter(torch.ones(outputs)))
    model = nn.ModuleDict({"layer": module})
    for weights in (layer_weights(model), checkpoint_weights(model.state_dict())):
        [weight] = weights
        assert (weight.name, weight.kind, weight.layout) == ("layer", "parameter", "batch")
        assert torch.equal(weight.matrices, module.weight.detach().flatten(0, -3))
        assert "its layout is guessed by its shape as batch; " in weight.remark


def test_a_kernel_that_may_be_matrices_says_so():
    state = {"a.weight": torch.randn(4, 16, 12, 20), "b.weight": torch.randn(24, 3, 16, 16)}
    remarks = {weight.name: weight.remark for weight in checkpoint_weights(state)}
    assert remarks["a"].startswith("its layout is guessed by its shape as oikk; ")
    assert remarks["b"] == ""


@pytest.mark.parametrize(("shape", "batch"), [((1, 12, 5, 5), False), ((1, 5, 12, 20), True), ((1, 12, 12, 20), True)])
@pytest.mark.parametrize("name", ["pos_embed", "pos_embed_win", "pos_embed_window"])
def test_positions_on_a_grid_in_a_model_and_its_file(shape, batch, name):
    """(1, channels, n, n), or (1, places, ..., channels)."""
    model = nn.Module()
    model.register_parameter(name, nn.Parameter(torch.randn(shape)))
    grid = model.get_parameter(name).detach()
    expected = grid[0] if batch else grid.flatten(2)
    for weights in (layer_weights(model), checkpoint_weights(model.state_dict())):
        [weight] = weights
        assert torch.equal(weight.matrices, expected)


@pytest.mark.parametrize("shape", [(24, 7, 7, 3), (24, 16, 16, 3), (24, 5, 5, 12)])
def test_channels_last_are_told_by_the_shape_and_said(shape):
    [weight] = checkpoint_weights({"stem.weight": (tensor := torch.randn(shape))})
    assert torch.equal(weight.matrices, positions(tensor, (1, 2, 0, 3)))
    assert "guessed by its shape as okki; " in weight.remark
    assert weight.remark.endswith("PATTERN=oikk")


def test_kernels_of_mlx_have_the_inputs_last(tmp_path):
    """As its metadata say, also in shards."""
    state = {"stem": torch.randn(24, 3, 3, 3), "conv1": torch.randn(24, 3, 16), "up": torch.randn(4, 40, 40)}
    state = {f"{name}.weight": tensor for name, tensor in state.items()}
    save_file(state, tmp_path / "model-00001-of-00001.safetensors", metadata={"format": "mlx"})
    index = {"weight_map": dict.fromkeys(state, "model-00001-of-00001.safetensors")}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    for path in (tmp_path, tmp_path / "model-00001-of-00001.safetensors"):
        found = {weight.name: weight for weight in checkpoint_weights(path)}
        assert torch.equal(found["stem"].matrices, positions(state["stem.weight"], (1, 2, 0, 3)))
        assert torch.equal(found["conv1"].matrices, positions(state["conv1.weight"], (1, 0, 2)))
        assert torch.equal(found["up"].matrices, state["up.weight"])


EMBEDDINGS = (
    "decoder.embed_tokens.0", "decoder.embed.0", "input_embeds_layers.1", "position_embeds_layer",
    "relative_attention_bias", "layers.0.rel_pos_bias", "embed_tokens_per_layer", "embed_audio_tokens",
    "visual_embeddings_table", "xpath_sub_embeddings.24",
)  # fmt: skip


def test_tables_of_embeddings_and_projections_of_patches_by_their_names():
    """As transformers, ESPnet and others call them."""
    projections = (
        "patch_embed",
        "vision.patch_embedding",
        "embed_out",
        "to_global_embed.0",
        "time_embed.0",
        "emb_layers.1",
    )
    state = {f"{name}.weight": torch.randn(40, 20) for name in (*EMBEDDINGS, *projections)}
    state |= {f"{name}.bias": torch.randn(40) for name in projections[-2:]}
    kinds = {weight.name: weight.kind for weight in checkpoint_weights(state)}
    assert kinds == dict.fromkeys(EMBEDDINGS, "embedding") | dict.fromkeys(projections, "linear")


BATCHES = {
    "by a bias each": ("up", (6, 20, 8), {"up.bias": torch.ones(6, 20)}, True),
    "by name": ("mlp.experts.up", (6, 20, 8), {}, True),
    "by its length": ("up", (6, 20, 64), {}, True),
    "a kernel": ("up", (6, 20, 8), {}, False),
    "a long kernel with a bias": ("pos_conv", (32, 20, 128), {"pos_conv.bias": torch.ones(32)}, False),
    "a long kernel by its name": ("downsample.conv", (32, 20, 64), {}, False),
    "a kernel of one channel": ("filter", (6, 1, 64), {}, False),
}


@pytest.mark.parametrize("case", BATCHES)
def test_what_tells_a_batch_from_a_kernel(case):
    module, shape, others, batch = BATCHES[case]
    tensor = torch.randn(shape)
    [weight] = checkpoint_weights({f"{module}.weight": tensor, **others})
    assert weight.kind == ("parameter" if batch else "convolution")
    assert torch.equal(weight.matrices, tensor if batch else tensor.permute(2, 0, 1))
