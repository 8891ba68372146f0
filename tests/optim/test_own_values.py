"""Values that optimizers keep in their groups: each layer's own, written back whole, resumed bit for bit."""

import copy
import io
from collections import deque

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_farms.optim import LayerwiseScaling

MULTIPLIERS = [{"a": 2.0, "b": 0.5}] * 3 + [{"a": 0.3, "b": 1.7}] * 2 + [{}] * 2 + [{"b": 3.0}] * 2


class Keeping(Optimizer):
    """Adam-like; where and how it keeps its counter and its averages is told by the two arguments."""

    def __init__(self, params, lr, counter="tensor", averages="state"):
        super().__init__(params, {"lr": lr})
        self.counter, self.averages = counter, averages
        for group in self.param_groups:
            if counter in ("tensor", "replaced tensor"):
                group["step"] = torch.zeros(())
            elif counter in ("list", "deque"):
                group["step"] = [0] if counter == "list" else deque([0])
            elif counter == "nested":
                group["step"] = {"count": torch.zeros(()), "history": []}
            if averages == "list":
                group["m"] = [torch.zeros_like(p) for p in group["params"]]
            elif averages == "empty list":
                group["m"] = [None] * len(group["params"])
            elif averages in ("appended", "dict"):
                group["m"] = [] if averages == "appended" else {}

    def count(self, group):
        if self.counter == "tensor":
            group["step"] += 1
        elif self.counter in ("replaced tensor", "late tensor"):
            group["step"] = group.get("step", torch.zeros(())) + 1
        elif self.counter == "nested":
            group["step"]["count"] += 1
            group["step"]["history"].append(float(group["lr"]))
            return float(group["step"]["count"]) + 1e-3 * sum(group["step"]["history"])
        else:
            group["step"][0] += 1
            return group["step"][0]
        return float(group["step"])

    def average(self, group, index, p):
        if self.averages == "state":
            return self.state[p].setdefault("m", torch.zeros_like(p))
        if self.averages in ("dict", "late dict"):
            return group.setdefault("m", {}).setdefault(p, torch.zeros_like(p))
        if self.averages == "late list":
            group.setdefault("m", [torch.zeros_like(q) for q in group["params"]])
        elif self.averages == "appended" and len(group["m"]) <= index:
            group["m"].append(torch.zeros_like(p))
        elif self.averages == "empty list" and group["m"][index] is None:
            group["m"][index] = torch.zeros_like(p)
        assert len(group["m"]) <= len(group["params"])
        return group["m"][index]

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            count = self.count(group)
            group["sum"] = group.get("sum", torch.zeros(())) + group["lr"] ** 2  # as schedule-free optimizers' weights
            for index, p in enumerate(group["params"]):
                m = self.average(group, index, p).lerp_(p.grad, 0.1)
                p -= group["lr"] / group["sum"].sqrt() * m / (1 - 0.9**count)


COUNTERS = ["tensor", "replaced tensor", "late tensor", "list", "deque", "nested"]
AVERAGES = ["state", "list", "empty list", "appended", "late list", "dict", "late dict"]
KINDS = [(counter, "state") for counter in COUNTERS] + [("tensor", averages) for averages in AVERAGES[1:]]


def parameters():
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter(torch.randn(3, generator=generator, dtype=torch.float64)) for _ in range(5)]


def layer_of(params):
    """Two parameters of a layer lie apart, one belongs to none."""
    return dict(zip(params, ("a", "b", "a", "c"), strict=False))


def gradients(params, number):
    for p in params:
        p.grad = torch.cos(p.detach() + number)


def by_hand(kind, steps=MULTIPLIERS, lr=0.1):
    params = parameters()
    of = layer_of(params)
    layers = ["a", "b", "c", None]
    groups = [{"params": [p for p in params if of.get(p) == layer]} for layer in layers]
    optimizer = Keeping(groups, lr, *kind)
    for number, multipliers in enumerate(steps):
        for group, layer in zip(optimizer.param_groups, layers, strict=True):
            group["lr"] = lr * multipliers.get(layer, 1.0)
        gradients(params, number)
        optimizer.step()
    return params, optimizer


def start(kind, lr=0.1):
    params = parameters()
    optimizer = Keeping(params, lr, *kind)
    return params, optimizer, LayerwiseScaling(optimizer, layer_of(params))


def run(params, optimizer, scaling, steps, first=0):
    with scaling:
        for number, multipliers in enumerate(steps, first):
            scaling.multipliers = multipliers
            gradients(params, number)
            optimizer.step()
        assert scaling.fault is None


@pytest.mark.parametrize("kind", KINDS, ids="-".join)
def test_equal_to_one_group_a_layer_with_rates_set_by_hand(kind):
    params, optimizer, scaling = start(kind)
    run(params, optimizer, scaling, MULTIPLIERS)
    theirs, hand = by_hand(kind)
    assert all(map(torch.equal, params, theirs))
    (group,) = optimizer.param_groups
    first = hand.param_groups[0]
    assert torch.equal(group["sum"], first["sum"])
    assert group["step"] == first["step"]  # one a step, not one a layer


@pytest.mark.parametrize("averages", AVERAGES[1:])
def test_what_belongs_to_parameters_is_written_back_whole(averages):
    params, optimizer, scaling = start(("tensor", averages))
    held = optimizer.param_groups[0].get("m")
    run(params, optimizer, scaling, MULTIPLIERS[:4])
    _, hand = by_hand(("tensor", averages), MULTIPLIERS[:4])
    whole = optimizer.param_groups[0]["m"]
    assert held is None or whole is held  # the group's own object
    found = [whole[p] for p in params] if isinstance(whole, dict) else whole
    assert len(whole) == 5
    theirs = [{}, {}, {}, {}]
    for group, mine in zip(hand.param_groups, theirs, strict=True):
        mine.update(zip(range(2), group["m"].values() if isinstance(whole, dict) else group["m"], strict=False))
    expected = [theirs[0][0], theirs[1][0], theirs[0][1], theirs[2][0], theirs[3][0]]
    assert all(map(torch.equal, found, expected))


def test_a_list_of_some_of_the_parameters_is_divided_with_them():
    seen = []

    class Choosing(Keeping):
        def step(self, closure=None):
            seen.extend((group["params"], group["chosen"]) for group in self.param_groups)
            super().step()

    params = parameters()
    optimizer = Choosing([{"params": params, "chosen": [params[4], params[1], params[0]]}], 0.1)
    chosen = optimizer.param_groups[0]["chosen"]
    run(params, optimizer, LayerwiseScaling(optimizer, layer_of(params)), MULTIPLIERS[:1])
    assert [[id(p) for p in some] for _, some in seen] == [[id(params[i])] for i in (0, 1)] + [[], [id(params[4])]]
    assert optimizer.param_groups[0]["chosen"] is chosen
    assert {id(p) for p in chosen} == {id(params[i]) for i in (0, 1, 4)}


def test_the_groups_own_tensor_is_updated_in_place_and_no_one_elses():
    params, optimizer, scaling = start(("tensor", "list"))
    counter, averages = optimizer.param_groups[0]["step"], list(optimizer.param_groups[0]["m"])
    run(params, optimizer, scaling, MULTIPLIERS[:3])
    assert optimizer.param_groups[0]["step"] is counter
    assert counter.item() == 3
    assert all(x is y for x, y in zip(averages, optimizer.param_groups[0]["m"], strict=True))


@pytest.mark.parametrize("how", ["in place", "replaced"])
def test_someone_elses_change_counts_for_all(how):
    params, optimizer, scaling = start(("tensor", "state"))
    with scaling:
        scaling.multipliers = MULTIPLIERS[0]
        inside = []
        optimizer.register_step_post_hook(lambda *_: inside.extend(optimizer.param_groups))
        handle = optimizer.register_step_pre_hook(lambda *_: inside.append([g["step"] for g in optimizer.param_groups]))
        for number in range(2):
            gradients(params, number)
            optimizer.step()
        group = optimizer.param_groups[0]
        if how == "in place":
            group["step"].fill_(7.0)
        else:
            group["step"] = torch.tensor(7.0)
        optimizer.step()
        handle.remove()
    assert [float(step) for step in inside[-2]] == [8.0] * 4
    assert group["step"].item() == 8.0


@pytest.mark.parametrize("kind", [("tensor", "state"), ("late tensor", "late list"), ("nested", "list")], ids="-".join)
@pytest.mark.parametrize("scaling_first", [True, False])
def test_a_resumed_run_agrees_bit_for_bit_where_the_layers_disagree(kind, scaling_first):
    straight = start(kind)
    run(*straight, MULTIPLIERS)
    params, optimizer, scaling = start(kind)
    run(params, optimizer, scaling, MULTIPLIERS[:4])
    file = io.BytesIO()
    saved = {"p": [p.detach() for p in params], "optimizer": optimizer.state_dict(), "scaling": scaling.state_dict()}
    torch.save(saved, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded["scaling"]["own_values"]
    resumed, again, scaled = start(kind)
    for p, value in zip(resumed, loaded["p"], strict=True):
        p.data.copy_(value)
    for part, name in [(scaled, "scaling"), (again, "optimizer")][:: 1 if scaling_first else -1]:
        part.load_state_dict(loaded[name])
    assert scaled.state_dict()["own_values"]
    run(resumed, again, scaled, MULTIPLIERS[4:], first=4)
    assert all(map(torch.equal, resumed, straight[0]))
    assert torch.equal(again.param_groups[0]["sum"], straight[1].param_groups[0]["sum"])


def test_there_is_nothing_to_save_where_the_layers_agree():
    params, optimizer, scaling = start(("tensor", "list"))
    assert scaling.state_dict() == {}
    with scaling:
        scaling.multipliers = {"a": 1.0, "b": 2.0}
    for kind in (torch.optim.SGD, torch.optim.AdamW):
        optimizer = kind(params, lr=0.1)
        with LayerwiseScaling(optimizer, layer_of(params)) as scaling:
            scaling.multipliers = {"a": 2.0}
            gradients(params, 0)
            optimizer.step()
            assert scaling.state_dict() == {}


def test_own_values_are_ignored_where_the_group_shows_another():
    params, optimizer, scaling = start(("tensor", "state"))
    run(params, optimizer, scaling, MULTIPLIERS[:3])
    saved = scaling.state_dict()
    fresh = start(("tensor", "state"))  # its optimizer is not resumed
    fresh[2].load_state_dict(copy.deepcopy(saved))
    run(*fresh, MULTIPLIERS)
    assert all(map(torch.equal, fresh[0], by_hand(("tensor", "state"))[0]))


def test_another_scaling_takes_the_values_over():
    params, optimizer, scaling = start(("tensor", "state"))
    run(params, optimizer, scaling, MULTIPLIERS[:3])
    other = LayerwiseScaling(optimizer, layer_of(params))
    other.remember(scaling)
    run(params, optimizer, other, MULTIPLIERS[3:], first=3)
    assert all(map(torch.equal, params, by_hand(("tensor", "state"))[0]))


def test_the_device_is_not_waited_for_in_a_step(monkeypatch):
    params, optimizer, scaling = start(("tensor", "list"))
    compared = []
    equal = torch.equal
    monkeypatch.setattr(torch, "equal", lambda *pair: compared.append(pair) or equal(*pair))
    gradients(params, 0)
    with scaling:
        for multipliers, asked in (({"a": 2.0, "b": 0.5}, False), ({"a": 3.0}, False), ({}, True)):
            scaling.multipliers = multipliers
            optimizer.step()
            assert bool(compared) == asked  # only where the layers might have become one again
            del compared[:]
            for _ in range(3):
                optimizer.step()
            assert not compared


def test_layerwise_groups_share_what_they_share_without_scaling():
    class Counting(torch.optim.SGD):
        def step(self, closure=None):
            super().step()
            for group in self.param_groups:
                group["ticks"] += 1

    def ticks(scaled):
        params = parameters()
        shared = torch.zeros(())
        optimizer = Counting([{"params": [p], "ticks": shared} for p in params], lr=0.1)
        scaling = LayerwiseScaling(optimizer, layer_of(params))
        scaling.multipliers = {"a": 2.0, "b": 0.5}
        if scaled:
            scaling.attach()
        gradients(params, 0)
        optimizer.step()
        return shared.item()

    assert ticks(True) == ticks(False) == 5.0
