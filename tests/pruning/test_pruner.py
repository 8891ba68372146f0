"""Steps of pruning without a Trainer: totals, what stays gone, and which weights go, against sorting in numpy."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from lightning_farms.analysis import Selection
from lightning_farms.pruning import FARMSAllocation, UniformAllocation, prunable_weights
from lightning_farms.pruning.pruner import Pruner, thinned


@pytest.fixture(autouse=True)
def _seed():
    torch.manual_seed(0)


@pytest.fixture
def make():
    """A pruner of a model, and what it warns of."""

    def build(model, allocation=FARMSAllocation(epsilon=0.5)):
        warned = []
        pruner = Pruner(allocation, lambda what, message: warned.append(message))
        pruner.find(model, Selection())
        return pruner, warned

    return build


def zeros(model):
    return [int((p == 0).sum()) for p in model.parameters() if p.ndim == 2]


# ---- which -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["ties", "floats", "half", "complex", "pairs"])
def test_the_least_of_those_that_are_left_go_and_of_equal_ones_the_earlier(kind):
    numbers = torch.randn(2, 60)
    values = {
        "ties": torch.randint(-3, 4, (1, 60)).float(),
        "floats": numbers[:1],
        "half": numbers[:1].bfloat16(),
        "complex": torch.complex(numbers[:1], numbers[1:]),
        "pairs": numbers,
    }[kind]
    pruned = torch.rand(60) < 0.2
    magnitudes = torch.linalg.vector_norm(values, dim=0) if kind == "pairs" else values[0].abs()
    order = np.lexsort((np.arange(60), magnitudes.double().numpy()))
    left = [place for place in order if not pruned[place]]
    for more in (0, 1, 17, len(left)):
        expected = pruned.clone()
        expected[left[:more]] = True
        assert torch.equal(thinned(values, pruned, int(pruned.sum()) + more), expected)
    assert torch.equal(thinned(values, pruned, 0), pruned)  # what is gone is gone


def test_what_is_not_finite_goes_last():
    values = torch.tensor([[torch.nan, 1.0, torch.inf, 3.0, -torch.inf]])
    none = torch.zeros(5, dtype=torch.bool)
    assert thinned(values, none, 2).tolist() == [False, True, False, True, False]
    assert thinned(values, none, 3).tolist() == [True, True, False, True, False]


# ---- how many --------------------------------------------------------------------------------------------------------


def test_a_layer_that_has_lost_more_than_it_should_stays_and_the_others_share_the_rest(make):
    model = nn.Sequential(*(nn.Linear(10, 10) for _ in range(3)))
    pruner, warned = make(model)
    pruner.prune(pruner.plan({"0": 1.0, "1": 2.0, "2": 3.0}, 0.4))
    assert zeros(model) == [20, 40, 60]  # 0.5, 1 and 1.5 times 0.4
    before = [p == 0 for p in model.parameters() if p.ndim == 2]
    plan = pruner.plan({"0": 3.0, "1": 2.0, "2": 1.0}, 0.5)  # alone: 75, 50, 25
    pruner.prune(plan)
    # The last one keeps its 60; of the 90 that are left 54 and 36 by the scores, but the second keeps its 40.
    assert [row.zeros for row in plan] == zeros(model) == [50, 40, 60]
    assert [row.ratio for row in plan] == pytest.approx([0.5, 0.4, 0.6], abs=0.05)
    assert all((p == 0)[gone].all() for p, gone in zip((model[i].weight for i in range(3)), before, strict=True))
    assert plan.reached == 0.5
    assert warned == []


@pytest.mark.parametrize("sparsity", [0.0, 0.123, 0.5, 0.77, 0.999])
def test_totals_are_exact_and_never_fall(sparsity, make):
    model = nn.Sequential(nn.Linear(7, 11), nn.Linear(11, 3), nn.Linear(3, 1))
    size = 77 + 33 + 3
    pruner, _ = make(model)
    generator = torch.Generator().manual_seed(int(sparsity * 1000))
    last = [0, 0, 0]
    for part in (0.3, 0.6, 0.9, 0.95, 1.0):
        alphas = dict(zip("012", torch.rand(3, generator=generator).tolist(), strict=True))
        pruner.prune(pruner.plan(alphas, part * sparsity))
        now = zeros(model)
        assert sum(now) == int(part * sparsity * size + 0.5)
        assert all(more >= less for more, less in zip(now, last, strict=True))
        assert pruner.zeros == dict(zip("012", now, strict=True))
        assert pruner.sparsity == sum(now) / size
        last = now
    pruner.prune(pruner.plan(alphas, 0.0))  # asked for less: nothing comes back
    assert zeros(model) == last


def test_an_allocation_that_cannot_be_costs_no_training(make):
    model = nn.Sequential(nn.Linear(5, 1), nn.Linear(1, 5))
    pruner, warned = make(model, FARMSAllocation(cap=0.5))
    pruner.prune(pruner.plan({"0": 1.0, "1": 2.0}, 0.5))  # 5 of 10, but of 5 weights each at most 2 by the cap
    assert sum(zeros(model)) == 5
    assert len(warned) == 1
    assert warned[0].startswith(
        "every layer loses the same share at this step. Expected arguments `sparsity` and `cap`"
    )


@pytest.mark.filterwarnings("ignore:Initializing zero-element tensors")
def test_a_layer_without_weights_is_none(make):
    model = nn.Sequential(nn.Linear(4, 0), nn.Linear(0, 4), nn.Linear(4, 4))
    pruner, _ = make(model, UniformAllocation())
    assert [layer.name for layer in pruner.layers] == ["2"]
    listed = prunable_weights(nn.ModuleDict({"layers": nn.ModuleList([model])}))
    assert [weight.name for weight in listed] == ["layers.0.2"]


def test_a_floor_above_the_sparsity_of_an_early_step_is_lowered_for_it(make):
    model = nn.Sequential(nn.Linear(10, 10), nn.Linear(10, 10))
    pruner, warned = make(model, FARMSAllocation(epsilon=1.0, floor=0.3))
    pruner.prune(pruner.plan({"0": 1.0, "1": 2.0}, 0.1))
    assert zeros(model) == [10, 10]
    pruner.prune(pruner.plan({"0": 1.0, "1": 2.0}, 0.5))
    assert zeros(model) == [30, 70]
    assert warned == []


def test_tables_of_embeddings_are_pruned_where_they_are_selected_only():
    model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 9, bias=False), nn.utils.spectral_norm(nn.Linear(4, 4)))
    model[1].weight = model[0].weight
    pruner = Pruner(UniformAllocation(), lambda what, message: None)
    pruner.find(model, Selection())
    assert pruner.layers == []
    assert pruner.dense["1"] == "it is a table of embeddings too"
    assert pruner.dense["2"].startswith("its values are computed")
    pruner.find(model, Selection(embeddings=True))
    pruner.prune(pruner.plan(None, 0.5))
    assert int((model[0].weight == 0).sum()) == 18
    assert list(pruner.dense) == ["2"]


def test_layers_of_a_list_of_blocks_belong_together_and_a_list_of_one_is_none(make):
    def blocks(number):
        return nn.ModuleDict(
            {
                "stem": nn.Linear(3, 4),
                "blocks": nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)) for _ in range(number)),
            }
        )

    pruner, _ = make(blocks(2))
    assert [layer.block for layer in pruner.layers] == ["stem", *["blocks.0"] * 2, *["blocks.1"] * 2]
    pruner, _ = make(blocks(1))
    assert [layer.block for layer in pruner.layers] == ["stem", "blocks.0.0", "blocks.0.1"]


def test_steps_hold_through_an_optimizer_without_a_trainer(make):
    model = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
    pruner, _ = make(model, UniformAllocation())
    pruner.hold([optimizer])
    for sparsity in (0.25, 0.5):
        pruner.prune(pruner.plan(None, sparsity))
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(5, 6)).square().mean().backward()
            optimizer.step()
        assert zeros(model) == [48 * sparsity, 24 * sparsity]
    pruner.release()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        optimizer.step()
    assert sum(zeros(model)) < 36
