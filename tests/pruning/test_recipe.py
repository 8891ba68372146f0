"""A recipe read as llm-compressor 0.14 reads it, and masks handed to torch.nn.utils.prune."""

import math
from fractions import Fraction
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn
from torch.nn.utils import prune

from lightning_farms.functional import NofM, magnitude_mask
from lightning_farms.pruning.recipe import llm_compressor_recipe, prune_with_torch


def ratios(*layers):
    """An allocation of (name, size, ratio) or (name, size, pattern); the block is the first two parts of the name."""
    found = []
    for name, size, amount in layers:
        pattern = amount if isinstance(amount, NofM) else None
        ratio = amount[0] / amount[1] if pattern else amount
        block = ".".join(name.split(".")[:2])
        found.append(
            SimpleNamespace(name=name, block=block, size=size, ratio=ratio, zeros=round(ratio * size), pattern=pattern)
        )
    return SimpleNamespace(layers=found)


def modifiers(text):
    """Names of groups, names of modifiers and their settings, as llm-compressor finds them."""
    (stage,) = yaml.safe_load(text).values()
    return [(group, *modifier) for group, chosen in stage.items() for modifier in chosen.items()]


BY_BLOCK = [("h.0.q", 32, 0.25), ("h.0.fc", 64, 0.25), ("h.1.q", 32, 0.75), ("h.1.fc", 64, 0.75)]


@pytest.mark.parametrize(
    ("method", "modifier", "options"),
    [
        ("wanda", "WandaPruningModifier", {}),
        ("sparsegpt", "SparseGPTModifier", {"dampening_frac": 0.02, "block_size": 128}),
    ],
)
def test_blocks_of_one_ratio_are_targets(method, modifier, options):
    ((group, name, settings),) = modifiers(llm_compressor_recipe(ratios(*BY_BLOCK), method, damping=0.02))
    assert (group, name) == ("pruning_modifiers", modifier)
    assert settings.pop("sparsity") == pytest.approx([0.25, 0.75], rel=1e-15)
    ignored = settings.pop("ignore")
    assert settings == {"mask_structure": "0:0", "targets": ["h.0", "h.1"], **options}
    assert ignored == ["re:.*([.](gate|shared_expert_gate)([.].*)?|router.*)$"]


def test_else_layers_are_in_their_order():
    layers = [*BY_BLOCK[:3], ("h.1.fc", 64, 0.5)]
    ((_, _, settings),) = modifiers(llm_compressor_recipe(ratios(*layers), "wanda"))
    assert settings["targets"] == ["h.0.q", "h.0.fc", "h.1.q", "h.1.fc"]
    assert settings["sparsity"] == pytest.approx([0.25, 0.25, 0.75, 0.5], rel=1e-15)


def test_a_pattern_is_a_modifier():
    layers = [
        ("h.0.q", 32, NofM(2, 4)),
        ("h.1.q", 32, NofM(1, 4)),
        ("h.2.q", 32, NofM(2, 4)),
        ("h.3.q", 32, NofM(0, 4)),
    ]
    found = modifiers(llm_compressor_recipe(ratios(*layers), "wanda"))
    assert [(group, settings["mask_structure"], settings["targets"]) for group, _, settings in found] == [
        ("pruning_2_of_4_modifiers", "2:4", ["h.0", "h.2"]),
        ("pruning_1_of_4_modifiers", "1:4", ["h.1"]),
    ]


def test_ends():
    layers = [("h.0.q", 32, 0.0), ("h.1.q", 32, 1.0)]
    ((_, _, wanda),) = modifiers(llm_compressor_recipe(ratios(*layers), "wanda"))
    ((_, _, sparsegpt),) = modifiers(llm_compressor_recipe(ratios(*layers), "sparsegpt"))
    assert (wanda["targets"], wanda["sparsity"]) == (["h.1"], [1.0])
    # SparseGPT reads the sorted weights of a block of columns at this position, and prunes up to it
    assert int(11008 * 128 * sparsegpt["sparsity"][0]) == 11008 * 128 - 1


@pytest.mark.parametrize("columns", [64, 100, 576, 1536, 4096, 11008])
def test_wandas_counts_are_the_whole_numbers_below(columns):
    hundredths = range(1, 100)
    layers = [(f"h.{number}.q", columns, number / 100) for number in hundredths]
    ((_, _, settings),) = modifiers(llm_compressor_recipe(ratios(*layers), "wanda"))
    found = [int(columns * sparsity) for sparsity in settings["sparsity"]]
    assert found == [math.floor(Fraction(number, 100) * columns) for number in hundredths]


@pytest.mark.parametrize(
    ("layers", "method", "message"),
    [
        (BY_BLOCK, "magnitude", '`method` to be "sparsegpt" or "wanda", but got \'magnitude\''),
        ([("h.0.q", 32, 0.0)], "wanda", "`ratios` to prune something"),
        ([], "wanda", "`ratios` to prune something"),
    ],
)
def test_recipes_that_are_none(layers, method, message):
    with pytest.raises(ValueError, match=message):
        llm_compressor_recipe(ratios(*layers), method)


# ---- torch.nn.utils.prune --------------------------------------------------------------------------------------------


class Conv1D(nn.Module):
    """As in transformers: the weight is (inputs, outputs)."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 3))


class Experts(nn.Module):
    def __init__(self):
        super().__init__()
        self.up = nn.Parameter(torch.randn(4, 6, 8))


def model():
    torch.manual_seed(0)
    return nn.ModuleDict(
        {
            "fc": nn.Linear(8, 5),
            "conv": nn.Conv2d(4, 6, 3),
            "experts": Experts(),
            "first": Conv1D(),
            "last": nn.Linear(5, 2),
        }
    )


LAYERS = [("fc", 40, 0.3), ("conv", 216, 0.5), ("experts.up", 192, 0.7), ("first", 24, 0.25)]


def test_counts_are_those_of_the_allocation():
    pruned, dense = model(), model()
    prune_with_torch(pruned, ratios(*LAYERS))
    for module, name, size, amount in [
        (pruned["fc"], "weight", 40, 0.3),
        (pruned["conv"], "weight", 216, 0.5),
        (pruned["experts"], "up", 192, 0.7),
        (pruned["first"], "weight", 24, 0.25),
    ]:
        assert int((getattr(module, name) == 0).sum()) == round(size * amount)
        assert prune.is_pruned(module)
    assert not prune.is_pruned(pruned["last"])
    assert pruned["fc"].weight_orig.equal(dense["fc"].weight)
    prune.l1_unstructured(dense["fc"], "weight", amount=12)  # weights that differ: torch's own choice is the same
    assert pruned["fc"].weight_mask.equal(dense["fc"].weight_mask)
    output = pruned["fc"](torch.ones(2, 8))
    prune.remove(pruned["fc"], "weight")
    assert pruned["fc"](torch.ones(2, 8)).equal(output)
    assert int((pruned["fc"].weight == 0).sum()) == 12


def test_patterns_run_along_the_inputs():
    pruned, dense = model(), model()
    prune_with_torch(pruned, ratios(*[(name, size, NofM(3, 4)) for name, size, _ in LAYERS]))
    expected = magnitude_mask(dense["first"].weight.detach().T, NofM(3, 4)).T
    assert pruned["first"].weight_mask.bool().equal(expected)
    assert ((pruned["experts"].up == 0).unflatten(2, (2, 4)).sum(3) == 3).all()
    assert ((pruned["conv"].weight == 0).flatten(1).unflatten(1, (9, 4)).sum(2) == 3).all()
    assert ((pruned["fc"].weight == 0).unflatten(1, (2, 4)).sum(2) == 3).all()


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (("other.fc", 40, 0.5), "`model` to have the layer other.fc, but got ModuleDict"),
        (("experts.down", 40, 0.5), "`model` to have the layer experts.down"),
        (("fc", 41, 0.5), "`model` to have 41 weights in fc, but got 40"),
        (("first", 24, NofM(1, 3)), "m a divisor of 8 inputs"),
    ],
)
def test_a_model_that_does_not_fit_is_left_alone(layer, message):
    dense = model()
    with pytest.raises(ValueError, match=message):
        prune_with_torch(dense, ratios(LAYERS[1], layer))
    assert not prune.is_pruned(dense)
