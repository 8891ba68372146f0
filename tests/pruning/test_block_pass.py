"""The pass over a decoder's blocks, against one written here: hooks on a model of pruned and dense blocks."""

import copy
import math

import pytest
import torch
from torch import nn

from lightning_farms.functional import NofM, magnitude_mask, sparsegpt, wanda_mask
from lightning_farms.pruning import (
    UniformAllocation,
    allocate,
    decoder_blocks,
    input_mean_squares,
    prunable_weights,
    prune,
)
from tests.pruning.families import FAMILIES, tiny_decoder

IDS = torch.randint(0, 96, (12, 32), generator=torch.Generator().manual_seed(3))


def uniform(model, sparsity=0.5, **options):
    return allocate(model, sparsity, UniformAllocation(), **options)


def inputs_of_block(model, number):
    """Rows that go into the linear layers of one block, seen by hooks in the whole model."""
    rows, handles = {}, []
    name, block = list(decoder_blocks(model).items())[number]
    for path, module in block.named_modules():
        if isinstance(module, nn.Linear):
            key = f"{name}.{path}"
            handles.append(
                module.register_forward_pre_hook(lambda m, a, key=key: rows.update({key: a[0].flatten(0, -2)}))
            )
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return rows


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude"])
@pytest.mark.parametrize("family", ["llama", "opt post-norm, projections"])
def test_each_block_is_calibrated_on_the_pruned_ones_before_it(family, method):
    dense, pruned = tiny_decoder(family), tiny_decoder(family)
    prune(pruned, uniform(pruned), method, IDS)
    blocks = list(decoder_blocks(dense).values())
    for number, (block, result) in enumerate(zip(blocks, decoder_blocks(pruned).values(), strict=True)):
        rows = inputs_of_block(dense, number)  # `dense` has pruned blocks before this one by now
        prefix = list(decoder_blocks(dense))[number]
        for path, module in block.named_modules():
            if not isinstance(module, nn.Linear):
                continue
            weight, x = module.weight.detach(), rows[f"{prefix}.{path}"]
            if method == "sparsegpt":
                expected = sparsegpt(weight, x.T @ x, weight.numel() // 2).weight
            elif method == "wanda":
                expected = weight * wanda_mask(weight, x.double().square().mean(0), weight.numel() // 2)
            else:
                expected = weight * magnitude_mask(weight, weight.numel() // 2)
            found = result.get_submodule(path).weight
            agree = ((found == 0) == (expected == 0)).double().mean()
            assert agree > (0.98 if method == "sparsegpt" else 0.999)
            assert int((found == 0).sum()) == weight.numel() // 2
            if method != "sparsegpt":
                assert torch.equal(found[found != 0], weight[found != 0])
            module.weight.data.copy_(found)


@pytest.mark.parametrize("method", ["wanda", "sparsegpt"])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_sparsity_asked_for_in_whole_weights(family, method):
    model = tiny_decoder(family)
    before = {name: p.clone() for name, p in model.named_parameters()}
    weights = prunable_weights(model)
    report = prune(model, uniform(model, 0.6), method, IDS)
    size = sum(weight.size for weight in weights)
    assert report.zeros == sum(int((weight.matrices == 0).sum()) for weight in weights) == math.floor(0.6 * size + 0.5)
    assert all(0 < block.error < 1 for block in report.blocks)
    touched = {id(getattr(weight.module, weight.parameter)) for weight in weights}
    for name, parameter in model.named_parameters():
        assert torch.equal(parameter, before[name]) == (id(parameter) not in touched)


def test_reconstruction_errors_are_those_of_the_outputs():
    dense, model = tiny_decoder("llama"), tiny_decoder("llama")
    report = prune(model, uniform(model), "sparsegpt", IDS)
    rows = inputs_of_block(dense, 0)
    for layer in report.blocks[0].layers:
        old, new = (each.get_submodule(layer.name).weight.detach() for each in (dense, model))
        x = rows[layer.name]
        assert layer.error == pytest.approx(float((x @ (new - old).T).norm() / (x @ old.T).norm()), rel=1e-3)


def test_a_blocks_error_is_that_of_its_outputs():
    dense, model = tiny_decoder("llama"), tiny_decoder("llama")
    report = prune(model, uniform(model), "wanda", IDS)
    with torch.no_grad():  # the first block has the same inputs in both
        old, new = (each(input_ids=IDS[:8], output_hidden_states=True).hidden_states[1] for each in (dense, model))
    assert report.blocks[0].error == pytest.approx(float((new - old).norm() / old.norm()), rel=1e-4)


def test_the_report_says_how_hessians_were_factorised():
    ill = tiny_decoder("llama")
    ill.model.layers[1].post_attention_layernorm.weight.data[:16] *= 1e4  # moments of 1e8 beside those of 1
    layers = {layer.name: layer for layer in prune(ill, uniform(ill), "sparsegpt", IDS, damping=1e-7).layers}
    assert layers["model.layers.1.mlp.up_proj"].precision == "float64"
    assert all(layer.precision in ("float32", "float64") for layer in layers.values())
    model = tiny_decoder("llama")
    assert {layer.precision for layer in prune(model, uniform(model), "wanda", IDS).layers} == {""}


@pytest.mark.parametrize("method", ["wanda", "sparsegpt", "magnitude"])
def test_the_report_says_which_layers_had_more_zeros_than_asked_for(method):
    """Of a model that was pruned before."""
    model = tiny_decoder("llama")
    weight = model.model.layers[1].mlp.up_proj.weight
    weight.data[:, :24] = 0
    report = prune(model, uniform(model), method, IDS)
    assert report.notes == ["model.layers.1.mlp.up_proj: 1152 weights were zero before, more than the 768 asked for"]
    assert report.zeros == uniform(model).zeros + 1152 - 768


def test_hessians_that_cannot_be_factorised_get_more_damping_and_the_report_says_so():
    model = tiny_decoder("llama")
    report = prune(model, uniform(model), "sparsegpt", IDS[:1], damping=0.0)  # 32 tokens, 48 inputs of down_proj
    assert any("down_proj: damping raised to 0." in note for note in report.notes)


@pytest.mark.parametrize("method", ["magnitude", "wanda", "sparsegpt"])
def test_patterns(method):
    model = tiny_decoder("llama")
    report = prune(model, uniform(model, 0.5, pattern_m=4), method, IDS)
    for weight in prunable_weights(model):
        zeros = (weight.matrices == 0).unflatten(-1, (-1, 4)).sum(-1)
        assert bool((zeros == 2).all())
    assert report.reached == 0.5


def test_half_precision_stays_and_is_pruned_as_far():
    model = tiny_decoder("llama").bfloat16()
    report = prune(model, uniform(model, 0.5), "sparsegpt", IDS)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    assert report.reached == pytest.approx(0.5, abs=2e-4)  # kept weights may round to zero


def test_hidden_states_on_disk_change_nothing(tmp_path):
    in_memory, on_disk = tiny_decoder("gemma2"), tiny_decoder("gemma2")
    prune(in_memory, uniform(in_memory), "wanda", IDS)
    seen = []
    look = {"hidden_folder": tmp_path / "new", "progress": lambda _: seen.append(list((tmp_path / "new").iterdir()))}
    prune(on_disk, uniform(on_disk), "wanda", IDS, **look)
    assert all(torch.equal(a, b) for a, b in zip(in_memory.parameters(), on_disk.parameters(), strict=True))
    assert seen == [[]] * 3  # nothing has a name that would outlive a killed process


@pytest.mark.skipif(not hasattr(torch.compiler, "set_stance"), reason="since PyTorch 2.6")
@pytest.mark.parametrize(
    "compiled", [lambda m: torch.compile(m, backend="eager"), lambda m: m.compile(backend="eager") or m]
)
def test_a_compiled_model_is_pruned_as_the_plain_one(compiled):
    plain, model = tiny_decoder("llama"), compiled(tiny_decoder("llama"))
    report = prune(model, uniform(model), "wanda", IDS)
    assert report.zeros == prune(plain, uniform(plain), "wanda", IDS).zeros
    assert all(torch.equal(one, other) for one, other in zip(plain.parameters(), model.parameters(), strict=True))


def test_experts_with_few_tokens_go_by_magnitude_and_the_report_says_so():
    dense, model = tiny_decoder("olmoe"), tiny_decoder("olmoe")
    report = prune(model, uniform(model), "wanda", IDS, min_tokens=10**6)
    assert any("expert 2" in note and "chosen by magnitude" in note for note in report.notes)
    before, after = (each.model.layers[0].mlp.experts.down_proj[2].detach() for each in (dense, model))
    assert torch.equal(after != 0, magnitude_mask(before, before.numel() // 2))


def test_tied_embeddings_stay_tied_and_dense():
    model = tiny_decoder("opt")
    before = model.get_input_embeddings().weight.clone()
    prune(model, uniform(model), "wanda", IDS)
    assert model.get_output_embeddings().weight is model.get_input_embeddings().weight
    assert torch.equal(model.get_input_embeddings().weight, before)


@pytest.mark.parametrize("method", ["magnitude", "wanda"])
def test_weights_that_are_not_finite_are_named(method):
    model = tiny_decoder("llama")
    ratios = uniform(model)
    model.model.layers[1].mlp.up_proj.weight.data[0, 0] = math.nan
    with pytest.raises(ValueError, match=r"weights of model\.layers\.1\.mlp\.up_proj to be finite"):
        prune(model, ratios, method, IDS)


def test_activations_that_are_not_finite_are_named():
    model = tiny_decoder("llama")
    ratios = uniform(model)
    model.model.layers[1].input_layernorm.weight.data[0] = math.inf
    with pytest.raises(ValueError, match=r"activations that go into model\.layers\.1\.self_attn\.q_proj to be finite"):
        prune(model, ratios, "wanda", IDS)


def test_a_dead_input_is_pruned_away():
    model = tiny_decoder("llama")
    model.model.layers[0].mlp.up_proj.weight.data[5] = 0  # so that input 5 of down_proj is always zero
    report = prune(model, uniform(model), "sparsegpt", IDS)
    down = model.model.layers[0].mlp.down_proj.weight
    assert bool((down[:, 5] == 0).all())
    assert report.reached == 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "movement"}, "`method` to be one of"),
        ({"method": "wanda", "calibration": None}, "`calibration` to be token ids"),
        ({"method": "wanda", "calibration": torch.rand(3, 4)}, "`calibration` to be token ids"),
        ({"method": "wanda", "calibration": torch.zeros(0, 4, dtype=torch.long)}, "`calibration` to be token ids"),
    ],
)
def test_wrong_arguments(options, said):
    model = tiny_decoder("llama")
    with pytest.raises(ValueError, match=said):
        prune(model, uniform(model), **options)


def test_ratios_of_another_model_are_refused():
    model = tiny_decoder("llama")
    smaller = copy.deepcopy(model)
    del smaller.model.layers[2]
    with pytest.raises(ValueError, match=r"model\.layers\.2"):
        prune(model, uniform(smaller), "magnitude")


def test_mean_squares_of_the_dense_model():
    model = tiny_decoder("llama")
    before = copy.deepcopy(model.state_dict())
    found = input_mean_squares(model, IDS)
    for number in range(3):
        for name, rows in inputs_of_block(model, number).items():
            torch.testing.assert_close(found[name][0], rows.double().square().mean(0), rtol=1e-4, atol=1e-7)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_n_of_m_is_the_masks_pattern():
    assert uniform(tiny_decoder("llama"), 0.25, pattern_m=4).layers[0].pattern == NofM(1, 4)
