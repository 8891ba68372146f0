"""Second moments of inputs, against hooks and routings written here."""

from collections import defaultdict

import pytest
import torch
from torch import nn

from lightning_farms.pruning import decoder_blocks, prunable_weights
from lightning_farms.pruning._calls import experts_one_by_one
from lightning_farms.pruning._moments import WatchInputs
from tests.pruning.families import FAMILIES, tiny_decoder

IDS = torch.randint(0, 96, (4, 16), generator=torch.Generator().manual_seed(2))


def watched(model, products=True):
    weights = prunable_weights(model)
    with experts_one_by_one(model), torch.no_grad(), WatchInputs(weights, products=products) as watch:
        for ids in IDS:
            model(input_ids=ids[None], use_cache=False)
    return {weight.name: watch.of(weight) for weight in weights}


def hooked(model):
    """Inputs of every module that is called, as rows."""
    rows = defaultdict(list)
    handles = [
        module.register_forward_pre_hook(lambda m, args, name=name: rows[name].append(args[0].flatten(0, -2)))
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
    ]
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(each).double() for name, each in rows.items()}


@pytest.mark.parametrize("family", FAMILIES)
def test_inputs_of_every_layer(family):
    model = tiny_decoder(family)
    found, rows = watched(model), hooked(model)
    layers = [name for name in found if "experts" not in name]
    assert layers
    for name in layers:
        (moments,) = found[name]
        assert moments.tokens == IDS.numel()
        torch.testing.assert_close(moments.mean_square, rows[name].square().mean(0), rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(moments.products.double(), rows[name].T @ rows[name], rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("family", ["mixtral", "qwen3-moe", "olmoe"])
def test_every_expert_sees_the_tokens_that_are_routed_to_it(family):
    model = tiny_decoder(family)
    found = watched(model)
    routed = {}
    for name, module in model.named_modules():
        if name.endswith("experts"):
            module.register_forward_pre_hook(lambda m, args, name=name: routed.update({name: args[:2]}))
    with experts_one_by_one(model), torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    assert len(routed) == 3
    for name, (hidden, chosen) in routed.items():
        experts = model.get_submodule(name)
        for index in range(4):
            tokens = hidden[(chosen == index).any(-1)]
            gate, up = (tokens @ experts.gate_up_proj[index].T).chunk(2, -1)
            inner = nn.functional.silu(gate) * up
            for parameter, rows in (("gate_up_proj", tokens), ("down_proj", inner)):
                moments = found[f"{name}.{parameter}"][index]
                assert moments.tokens == len(tokens)
                torch.testing.assert_close(moments.products, rows.T @ rows, rtol=1e-3, atol=1e-4)
    assert sum(moments.tokens for moments in found[f"{name}.down_proj"]) == 2 * IDS.numel()  # two experts a token


def test_experts_that_are_all_multiplied_at_once_see_the_tokens_that_are_routed_to_them():
    model = tiny_decoder("llama4")
    found, rows = watched(model), {}
    for name, module in model.named_modules():
        if name.endswith("experts"):
            module.register_forward_pre_hook(
                lambda m, args, name=name: rows.update({name: args[0].unflatten(0, (4, -1))})
            )
    with torch.no_grad():
        model(input_ids=IDS, use_cache=False)
    assert len(rows) == 3
    for name, tokens in rows.items():
        experts = model.get_submodule(name)
        for index in range(4):
            gate, up = (tokens[index] @ experts.gate_up_proj[index]).chunk(2, -1)
            for parameter, inputs in (("gate_up_proj", tokens[index]), ("down_proj", up * nn.functional.silu(gate))):
                moments = found[f"{name}.{parameter}"][index]
                assert moments.tokens == int((tokens[index] != 0).any(-1).sum())
                torch.testing.assert_close(moments.products, inputs.T @ inputs, rtol=1e-3, atol=1e-4)
        assert sum(moments.tokens for moments in found[f"{name}.down_proj"]) == IDS.numel()  # one expert a token


class Pair(nn.Module):
    """Two linear layers, called with the inputs in the order that is given."""

    def __init__(self, calls):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"a": nn.Linear(6, 5), "b": nn.Linear(6, 5)})])
        self.calls = calls

    def forward(self, **inputs):
        for layer, name in self.calls:
            self.layers[0][layer](inputs[name])


@pytest.mark.parametrize("calls", [["ax", "bx", "by"], ["ax", "ay", "by"], ["ax", "bx", "by", "ay", "ax"]])
def test_layers_that_part_have_moments_of_their_own(calls):
    model, inputs = Pair(calls), {"x": torch.randn(7, 6), "y": torch.randn(3, 6)}
    weights = prunable_weights(model)
    with torch.no_grad(), WatchInputs(weights, products=True) as watch:
        model(**inputs)
    for weight, layer in zip(weights, "ab", strict=True):
        rows = torch.cat([inputs[name] for called, name in calls if called == layer])
        (moments,) = watch.of(weight)
        assert moments.tokens == len(rows)
        torch.testing.assert_close(moments.products, rows.T @ rows)


@pytest.mark.parametrize("calls", [["ax", "bx", "ay"], ["ax", "bx", "ay", "bx"]])
def test_a_layer_that_its_leader_leaves_behind_is_named(calls):
    model = Pair(calls)
    weights = prunable_weights(model)
    with torch.no_grad(), pytest.raises(ValueError, match=r"layers\.0\.b had the same inputs"):  # noqa: PT012
        with WatchInputs(weights, products=True) as watch:
            model(x=torch.randn(7, 6), y=torch.randn(3, 6))
        watch.of(weights[1])


def test_weights_with_one_input_share_their_moments():
    found = watched(tiny_decoder("llama"))
    layer = "model.layers.1."
    q, k, v, o = (found[f"{layer}self_attn.{name}_proj"][0] for name in "qkvo")
    gate, up, down = (found[f"{layer}mlp.{name}_proj"][0] for name in ("gate", "up", "down"))
    assert q is k is v
    assert gate is up
    assert len({id(each) for each in (q, o, gate, down)}) == 4


def test_squares_alone_hold_no_matrix():
    assert all(
        moments.products is None for each in watched(tiny_decoder("llama"), products=False).values() for moments in each
    )


class Products(nn.Module):
    """One linear layer whose weight is used in other ways than by calling it."""

    def __init__(self, product):
        super().__init__()
        self.layers = nn.ModuleList([nn.ModuleDict({"proj": nn.Linear(6, 5, bias=False)})])
        self.product = product

    def forward(self, x):
        return self.product(x, self.layers[0]["proj"].weight)


@pytest.mark.parametrize(
    "product",
    [
        lambda x, w: x @ w.T,
        lambda x, w: torch.matmul(x, w.mT),
        lambda x, w: x.matmul(w.t()),
        lambda x, w: torch.mm(x, w.t()),
        lambda x, w: torch.addmm(torch.zeros(5), x, w.t()),
        lambda x, w: w @ x.T,
        lambda x, w: torch.bmm(x[None], w.T[None]),
        lambda x, w: nn.functional.linear(input=x, weight=w),
    ],
)
def test_products_by_other_names(product):
    model, x = Products(product), torch.randn(7, 6)
    (weight,) = prunable_weights(model)
    with torch.no_grad(), WatchInputs([weight], products=True) as watch:
        model(x)
    (moments,) = watch.of(weight)
    assert moments.tokens == 7
    torch.testing.assert_close(moments.products, x.T @ x)


def test_a_layer_that_nothing_reaches_has_no_tokens():
    model = Products(lambda x, w: x)
    (weight,) = prunable_weights(model, decoder_blocks(model))
    with WatchInputs([weight], products=True) as watch:
        model(torch.randn(7, 6))
    (moments,) = watch.of(weight)
    assert moments.tokens == 0
    assert moments.mean_square.tolist() == [0.0] * 6
