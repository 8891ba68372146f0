"""Which weights of a block are pruned, in modules as families of transformers have them."""

import pytest
import torch
from torch import nn

from lightning_farms.functional import NofM
from lightning_farms.pruning import UniformAllocation, allocate, decoder_blocks, prunable_weights, prune
from tests.pruning.families import tiny_decoder


def named(**modules):
    """A model with one block of the given modules."""
    return nn.ModuleDict({"layers": nn.ModuleList([nn.ModuleDict(modules)])})


def names(model):
    return [weight.name.removeprefix("layers.0.") for weight in prunable_weights(model)]


def test_routers_stay_dense_whatever_they_are_made_of():
    mlp = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    model = named(
        up=nn.Linear(8, 8),
        router=mlp,  # Zaya
        topk_router=nn.ModuleDict({"classifier": nn.Linear(8, 4)}),  # LongCat, JetMoE
        gate=nn.ModuleDict({"wg": nn.Linear(8, 4)}),  # HunYuan
    )
    assert names(model) == ["up"]


class Adapted(nn.Module):
    """A linear layer with a low-rank update, as peft builds it."""

    def __init__(self):
        super().__init__()
        self.base_layer = nn.Linear(16, 16, bias=False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(16, 12, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(12, 16, bias=False)})
        self.scaling = {"default": 2.0}
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x):
        return self.base_layer(x) + self.lora_B["default"](self.lora_A["default"](x)) * self.scaling["default"]


def test_factors_of_low_rank_updates_stay_dense_and_that_is_said():
    model = nn.ModuleDict({"layers": nn.ModuleList(nn.ModuleDict({"q": Adapted()}) for _ in range(2))})
    assert names(model) == ["q.base_layer", "layers.1.q.base_layer"]
    before = [block["q"].lora_A["default"].weight.clone() for block in model["layers"]]
    ratios = allocate(model, 0.5)
    assert ratios.size == 2 * 16 * 16
    assert ratios.notes == (
        "the factors of 2 low-rank updates (LoRA) stay dense, and fill the zeros when they are merged: merge them "
        "first (peft's merge_and_unload), or keep them apart",
    )
    prune(model, ratios, "magnitude")
    for block, factor in zip(model["layers"], before, strict=True):
        assert torch.equal(block["q"].lora_A["default"].weight, factor)
    zeros = sum(int((block["q"].base_layer.weight == 0).sum()) for block in model["layers"])
    assert zeros == 256


def test_a_gate_that_widens_is_no_router():
    assert names(named(gate=nn.Linear(8, 24), up=nn.Linear(8, 24), down=nn.Linear(24, 8))) == ["gate", "up", "down"]


class Experts(nn.Module):
    """Fused experts; `names` are attributes that hold their number."""

    def __init__(self, shapes, hidden_size=8, **numbers):
        super().__init__()
        self.hidden_size = hidden_size
        for name, number in numbers.items():
            setattr(self, name, number)
        for name, shape in shapes.items():
            self.register_parameter(name, nn.Parameter(torch.randn(shape)))


def test_experts_that_do_nothing_have_no_matrix_on_the_way_back():
    shapes = {"gate_up_proj": (6, 24, 8), "down_proj": (4, 8, 12)}
    model = named(experts=Experts(shapes, num_routed_experts=4, total_experts=6))
    assert {w.parameter: tuple(w.matrices.shape) for w in prunable_weights(model)} == shapes


def test_experts_with_inputs_first_are_known_by_their_shapes():
    model = named(experts=Experts({"gate_up_proj": (4, 8, 24), "down_proj": (4, 12, 8)}, num_experts=4))
    assert [tuple(w.matrices.shape) for w in prunable_weights(model)] == [(4, 24, 8), (4, 8, 12)]


def test_patterns_of_llama_4_run_along_the_inputs_of_its_experts():
    model = tiny_decoder("llama4")
    prune(model, allocate(model, NofM(2, 4), UniformAllocation()), "magnitude")
    experts = model.model.layers[0].feed_forward.experts
    for stored in (experts.gate_up_proj, experts.down_proj):  # (experts, inputs, outputs)
        assert ((stored == 0).unflatten(1, (-1, 4)).sum(2) == 2).all()


@pytest.mark.parametrize(("entries", "said"), [(2, False), (16, True)])
def test_matrices_of_no_known_kind_are_told_of(entries, said):
    block = nn.Linear(8, 8)
    block.register_parameter("mixing", nn.Parameter(torch.ones(entries, 1)))
    model = nn.ModuleDict({"layers": nn.ModuleList([block])})
    notes = allocate(model, 0.5, UniformAllocation()).notes
    assert [note.partition("%")[0] for note in notes] == (["20"] if said else [])
    assert all(note.endswith("stay dense: layers.*.mixing") for note in notes)


def linears(count, size):
    return nn.ModuleList(nn.Linear(size, size) for _ in range(count))


def test_the_part_that_a_model_says_is_its_language_model_counts():
    """As of BLIP-2 and GLM-OCR, whose other parts may be larger."""

    class Both(nn.Module):
        def __init__(self, decoder):
            super().__init__()
            self.query, self.text = nn.ModuleDict({"layers": linears(3, 32)}), nn.ModuleDict({"layers": linears(2, 8)})
            self.decoder = decoder

        def get_decoder(self):
            if self.decoder is None:
                raise NotImplementedError
            return getattr(self, self.decoder) if isinstance(self.decoder, str) else self.decoder

    assert list(decoder_blocks(Both("text"))) == ["text.layers.0", "text.layers.1"]
    for says_nothing in (None, nn.Linear(8, 8), "query"):  # a head, as ModernBERT's decoder; or the part itself
        assert next(iter(decoder_blocks(Both(says_nothing)))) == "query.layers.0"


def test_blocks_of_a_model_of_pictures_are_no_decoder_blocks():
    class Pictures(nn.Module):
        main_input_name = "pixel_values"

        def __init__(self):
            super().__init__()
            self.layers = nn.ModuleList(nn.Linear(32, 32) for _ in range(2))

    assert list(decoder_blocks(nn.ModuleDict({"all": Pictures()}))) == ["all.layers.0", "all.layers.1"]  # as Whisper's
    model = nn.ModuleDict({"vision": Pictures(), "text": nn.ModuleList(nn.Linear(8, 8) for _ in range(2))})
    assert list(decoder_blocks(model)) == ["text.0", "text.1"]
    assert "vision.layers.*.weight" in allocate(model, 0.5, UniformAllocation()).notes[0]
