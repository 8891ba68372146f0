"""Every block of a decoder run alone gives what it gives in the model; what cannot be run so is refused by name."""

from typing import NamedTuple

import pytest
import torch
from torch import nn

from lightning_farms.pruning import decoder_blocks
from lightning_farms.pruning._calls import decoder_calls, experts_one_by_one
from tests.pruning.families import FAMILIES, tiny_decoder

IDS = torch.randint(0, 96, (3, 24), generator=torch.Generator().manual_seed(1))
CPU = torch.device("cpu")


def alone(model, calls_of_block_0=False):
    """Outputs of the blocks, one after the other, for every sequence."""
    blocks = decoder_blocks(model)
    with experts_one_by_one(model), torch.no_grad():
        found = decoder_calls(model, blocks, IDS, CPU)
        hidden, outputs = found.hidden, []
        for name, block in blocks.items():
            calls = found.calls[next(iter(blocks)) if calls_of_block_0 else name]
            hidden = [call.run(block, each) for call, each in zip(calls, hidden, strict=True)]
            outputs.append(torch.cat(hidden))
    return outputs


def in_the_model(model):
    """Outputs of the blocks as hooks of ours see them in the whole model, all sequences at once."""
    seen = []
    with experts_one_by_one(model), torch.no_grad():
        handles = [
            block.register_forward_hook(lambda b, i, out: seen.append(out if isinstance(out, torch.Tensor) else out[0]))
            for block in decoder_blocks(model).values()
        ]
        model(input_ids=IDS, use_cache=False)
    for handle in handles:
        handle.remove()
    return seen


@pytest.mark.parametrize("family", FAMILIES)
def test_blocks_alone_are_the_blocks_of_the_model(family):
    model = tiny_decoder(family)
    for ours, theirs in zip(alone(model), in_the_model(model), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_masks_of_blocks_that_alternate_are_their_own(family):
    model = tiny_decoder(family)
    wrong = alone(model, calls_of_block_0=True)[-1]
    assert (wrong - in_the_model(model)[-1]).norm() > 0.01 * wrong.norm()


def test_equal_masks_are_kept_once():
    model = tiny_decoder("gemma2")
    with torch.no_grad():
        calls = decoder_calls(model, decoder_blocks(model), IDS, CPU).calls
    cosines = {id(call.kwargs["position_embeddings"][0]) for of_block in calls.values() for call in of_block}
    assert len(cosines) == 1


def test_the_model_is_left_as_it_was():
    model = tiny_decoder("mixtral").train()
    before = model.config._experts_implementation
    alone(model)
    assert model.training
    assert model.config._experts_implementation == before
    assert all("forward" not in block.__dict__ for block in decoder_blocks(model).values())
    assert not any(block._forward_hooks for block in decoder_blocks(model).values())


class Toy(nn.Module):
    """A decoder of linear blocks; `route` says how the blocks are used."""

    def __init__(self, route):
        super().__init__()
        self.embed = nn.Embedding(96, 8)
        self.layers = nn.ModuleList(Block() for _ in range(3))
        self.route = route

    def forward(self, input_ids, use_cache=False):
        return self.route(self.layers, self.embed(input_ids))


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.proj = nn.Linear(8, 8)

    def forward(self, hidden_states, shift=0):
        return self.proj(hidden_states) + shift


def in_order(layers, hidden):
    for layer in layers:
        hidden = layer(hidden)
    return hidden


def twice(layers, hidden):
    return layers[0](in_order(layers, hidden))


def backwards(layers, hidden):
    return in_order(list(layers)[::-1], hidden)


def changed_between(layers, hidden):
    for layer in layers:
        hidden = layer(hidden * 2)
    return hidden


def fed_by_outputs(layers, hidden):
    first = hidden
    for layer in layers:
        hidden = layer(hidden, shift=(hidden - first).mean())
    return hidden


def left_out(layers, hidden):
    return layers[0](hidden)


@pytest.mark.parametrize(
    ("route", "said"),
    [
        (twice, "calls layers.0 more than once"),
        (backwards, "does not call its blocks one after the other"),
        (changed_between, "changes the hidden states before layers.1"),
        (fed_by_outputs, "hands its blocks values that depend on the outputs of earlier blocks"),
        (left_out, "does not call its blocks one after the other: layers.0"),
    ],
)
def test_a_decoder_of_another_kind_is_refused_by_name(route, said):
    model = Toy(route)
    with torch.no_grad(), pytest.raises(ValueError, match=f"Toy {said}"):
        decoder_calls(model, decoder_blocks(model), IDS, CPU)


def test_what_blocks_hand_on_beside_hidden_states_is_not_taken_for_another_sequences():
    class Telling(Block):
        def forward(self, hidden_states, shift=0):
            return self.proj(hidden_states) + shift, hidden_states.mean()

    def handed_on(layers, hidden):
        shift = 0
        for layer in layers:
            hidden, shift = layer(hidden, shift=shift)
        return hidden

    model = Toy(handed_on)
    model.layers = nn.ModuleList(Telling() for _ in range(3))
    with torch.no_grad(), pytest.raises(ValueError, match="Toy hands its blocks values that depend on the outputs"):
        decoder_calls(model, decoder_blocks(model), IDS, CPU)


def test_random_blocks_are_refused():
    class Noisy(Block):
        def forward(self, hidden_states):
            return self.proj(hidden_states) + torch.rand(())

    model = Toy(in_order)
    model.layers[1] = Noisy()
    with torch.no_grad(), pytest.raises(ValueError, match=r"Toy has a block, layers\.1, that gives something else"):
        decoder_calls(model, decoder_blocks(model), IDS, CPU)


class TwoStreams(NamedTuple):
    """What Reformer's blocks return: of a kind of its own, whose parts the model asks for by name."""

    hidden_states: torch.Tensor
    attn_output: torch.Tensor


@pytest.mark.parametrize(
    ("kind", "take", "said"),
    [
        (TwoStreams, lambda found: found.attn_output, "does more with what its blocks return than hand it on"),
        (lambda one, two: {"x": one}, lambda found: found["x"], "has blocks that do not return hidden states first"),
    ],
)
def test_blocks_that_return_something_of_their_own_are_refused(kind, take, said):
    class Own(Block):
        def forward(self, hidden_states):
            return kind(self.proj(hidden_states), hidden_states)

    def by_name(layers, hidden):
        for layer in layers:
            found = layer(hidden)
            hidden = found[0] if isinstance(found, tuple) else found["x"]
            take(found)
        return hidden

    model = Toy(by_name)
    model.layers = nn.ModuleList(Own() for _ in range(3))
    with torch.no_grad(), pytest.raises(ValueError, match=f"Toy {said}"):
        decoder_calls(model, decoder_blocks(model), IDS, CPU)


def test_plain_modules_are_decoders_too():
    model = Toy(in_order)
    torch.testing.assert_close(alone(model)[-1], in_the_model(model)[-1])
