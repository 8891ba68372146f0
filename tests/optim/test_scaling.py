"""The rate of every update is base times multiplier, and nothing else ever sees a multiplier."""

import copy
import gc
import math
import weakref

import numpy as np
import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, lr_scheduler

from lightning_farms.optim import LayerwiseScaling, layerwise_param_groups

MULTIPLIERS = {"0": 0.3, "2": 1.7}
STEPS = 7

SCHEDULERS = {
    "none": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1.0),
    "step": lambda o: lr_scheduler.StepLR(o, 2, gamma=0.3),
    "cosine": lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=5, eta_min=1e-4),
    "onecycle": lambda o: lr_scheduler.OneCycleLR(o, max_lr=0.2, total_steps=STEPS + 1),
    "lambda": lambda o: lr_scheduler.LambdaLR(o, lambda t: 1 / (1 + t)),
    "sequential": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.ExponentialLR(o, 0.7)], milestones=[3]
    ),
}


class SuperStepAdamW(AdamW):
    """Its step runs the closure itself and calls its parent's step, so that step hooks fire twice."""

    def step(self, closure=None):
        loss = None if closure is None else closure()
        super().step()
        return loss


OPTIMIZERS = {
    "sgd": lambda p: SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
    "adamw": lambda p: AdamW(p, lr=0.01, weight_decay=0.1),
    "foreach": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, foreach=True),
    "fused": lambda p: AdamW(p, lr=0.01, weight_decay=0.1, fused=True),
    "tensor": lambda p: AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1, foreach=False),
    "fused_tensor": lambda p: AdamW(p, lr=torch.tensor(0.01), weight_decay=0.1, fused=True),
    "super_step": lambda p: SuperStepAdamW(p, lr=0.01, weight_decay=0.1),
}


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 5), nn.LayerNorm(5), nn.Linear(5, 4), nn.Linear(4, 3))


def layers(model):
    """The LayerNorm follows the first layer; the last layer is left out and keeps the base rate."""
    owner = {"0": "0", "1": "0", "2": "2"}
    return {p: owner[n[0]] for n, p in model.named_parameters() if n[0] in owner}


def groups(model, grouping):
    weights = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim == 1]
    return {
        "one": lambda: model.parameters(),
        "named": lambda: model.named_parameters(),
        "mixed": lambda: [{"params": weights}, {"params": vectors, "weight_decay": 0.0}],
        "layerwise": lambda: layerwise_param_groups(model.named_parameters(), layers(model)),
        "single": lambda: [{"params": [p]} for p in model.parameters()],
    }[grouping]()


def loss_of(model, step):
    x = torch.randn(7, 6, generator=torch.Generator().manual_seed(step))
    return model(x.to(next(model.parameters()).dtype)).square().mean()


def closure_of(model, optimizer, step):
    def closure():
        optimizer.zero_grad()
        loss = loss_of(model, step)
        loss.backward()
        return loss

    return closure


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("split", [False, True], ids=["one_group", "two_groups"])
def test_rate_measured_from_the_weights_is_base_times_multiplier(name, split, measured_rates):
    def build():
        a, b, c = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3))
        params = [{"params": [a], "lr": 0.05}, {"params": [b, c]}] if split else [a, b, c]
        optimizer = SGD(params, lr=0.1, momentum=0.0)
        make = SCHEDULERS[name]
        if name == "onecycle":
            return (a, b, c), optimizer, lr_scheduler.OneCycleLR(optimizer, 0.2, STEPS + 1, cycle_momentum=False)
        return (a, b, c), optimizer, make(optimizer)

    (a, b, c), optimizer, scheduler = build()
    plain_params, plain, plain_scheduler = build()
    scaling = LayerwiseScaling(optimizer, {a: "a", b: "b"})
    scaling.multipliers = {"a": 0.3, "b": 10**0.5}
    scaling.attach()
    base = []
    for step in range(STEPS):
        base.append(measured_rates(plain, *plain_params))
        expected = [base[-1][0] * 0.3, base[-1][1] * 10**0.5, base[-1][2]]
        assert scaling.effective() == {"a": expected[0], "b": expected[1]}
        rates = measured_rates(optimizer, a, b, c, closure=(lambda: torch.zeros(())) if step % 2 else None)
        assert rates == expected
        assert [g["lr"] for g in optimizer.param_groups] == [g["lr"] for g in plain.param_groups]
        scheduler.step()
        plain_scheduler.step()
    assert name == "none" or len({row[0] for row in base}) >= 4


@pytest.mark.parametrize("grouping", ["one", "named", "mixed", "layerwise", "single"])
@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_equals_rates_set_by_hand_bit_for_bit(kind, grouping, snapshot):
    model, by_hand = make_model(), make_model()
    optimizer = OPTIMIZERS[kind](groups(model, grouping))
    schedule = SCHEDULERS["onecycle"](optimizer)
    probe = OPTIMIZERS[kind](make_model().parameters())
    probe_schedule = SCHEDULERS["onecycle"](probe)
    decay = probe.param_groups[0]["weight_decay"]
    hand = OPTIMIZERS[kind](
        [
            {"params": [p], "weight_decay": 0.0 if grouping == "mixed" and p.ndim == 1 else decay}
            for p in by_hand.parameters()
        ]
    )
    multipliers = [MULTIPLIERS.get(layers(by_hand).get(p), 1.0) for p in by_hand.parameters()]
    at_rest = snapshot(optimizer)
    with LayerwiseScaling(optimizer, layers(model)) as scaling:
        scaling.multipliers = MULTIPLIERS
        for step in range(STEPS):
            optimizer.step(closure_of(model, optimizer, step))
            now = {k: v for k, v in probe.param_groups[0].items() if k in ("lr", "momentum", "betas")}
            for group, multiplier in zip(hand.param_groups, multipliers, strict=True):
                group.update(now, lr=now["lr"] * multiplier)
            hand.step(closure_of(by_hand, hand, step))
            assert [float(g["lr"]) for g in optimizer.param_groups] == [float(now["lr"])] * len(at_rest)
            schedule.step()
            probe.step()
            probe_schedule.step()
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    changing = {"lr", "betas", "momentum"}
    assert [{k: v for k, v in g.items() if k not in changing} for g in snapshot(optimizer)] == [
        {k: v for k, v in g.items() if k not in changing} for g in at_rest
    ]


@pytest.mark.parametrize("rate", [np.float32(0.1), np.float64(0.1), 1])
def test_a_rate_may_be_any_real_number_that_the_optimizer_takes(rate):
    model, by_hand = make_model(), make_model()
    optimizer = SGD(model.parameters(), lr=rate)
    hand = SGD(
        [{"params": [p], "lr": rate * MULTIPLIERS.get(layers(by_hand).get(p), 1.0)} for p in by_hand.parameters()]
    )
    with LayerwiseScaling(optimizer, layers(model)) as scaling:
        scaling.multipliers = MULTIPLIERS
        for step in range(2):
            optimizer.step(closure_of(model, optimizer, step))
            hand.step(closure_of(by_hand, hand, step))
    assert optimizer.param_groups[0]["lr"] is rate
    for ours, theirs in zip(model.parameters(), by_hand.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_multipliers_matter_in_the_comparison_above():
    runs = []
    for multipliers in (MULTIPLIERS, {}):
        model = make_model()
        optimizer = AdamW(model.parameters(), lr=0.01)
        with LayerwiseScaling(optimizer, layers(model)) as scaling:
            scaling.multipliers = multipliers
            optimizer.step(closure_of(model, optimizer, 0))
        runs.append(model)
    same = [torch.equal(a, b) for a, b in zip(runs[0].parameters(), runs[1].parameters(), strict=True)]
    assert same == [False] * 6 + [True] * 2


@pytest.mark.parametrize("grouping", ["one", "mixed", "layerwise"])
@pytest.mark.parametrize("tensor_lr", [False, True])
def test_closure_sees_base_rates_and_own_groups(grouping, tensor_lr, snapshot):
    model = make_model()
    lr = torch.tensor(0.01) if tensor_lr else 0.01
    optimizer = AdamW(groups(model, grouping), lr=lr, foreach=False)
    own, rest = list(optimizer.param_groups), snapshot(optimizer)
    seen = []

    def closure():
        seen.append(snapshot(optimizer))
        seen.append(all(a is b for a, b in zip(optimizer.param_groups, own, strict=True)))
        seen.append(optimizer.state_dict()["param_groups"])
        return closure_of(model, optimizer, 0)()

    with LayerwiseScaling(optimizer, layers(model)) as scaling:
        scaling.multipliers = MULTIPLIERS
        assert torch.equal(optimizer.step(closure), loss_of(make_model(), 0))
        assert seen[0] == rest
        assert seen[1]
        assert [g["lr"] for g in seen[2]] == [lr] * len(own)
        assert sorted(i for g in seen[2] for i in g["params"]) == list(range(8))
        assert snapshot(optimizer) == rest
        assert len(optimizer.state_dict()["param_groups"]) == len(own)


def test_state_dict_in_another_step_hook_shows_base(toy, measured_rates):
    a, b, optimizer, scaling = toy
    scaling.multipliers = {"a": 2.0, "b": 3.0}
    scaling.attach()
    saved = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: saved.append(o.state_dict()))
    assert measured_rates(optimizer, a, b) == [0.2, 0.1 * 3.0]
    assert [g["lr"] for g in saved[0]["param_groups"]] == [0.1]


def test_change_of_the_base_rate_inside_the_closure_counts(toy, measured_rates):
    a, b, optimizer, scaling = toy
    scaling.multipliers = {"a": 2.0, "b": 3.0}
    scaling.attach()

    def closure():
        optimizer.param_groups[0]["lr"] = 0.5

    assert measured_rates(optimizer, a, b, closure=closure) == [1.0, 1.5]
    assert optimizer.param_groups[0]["lr"] == 0.5


@pytest.mark.parametrize("subclass", [AdamW, SuperStepAdamW])
def test_exception_in_the_closure_leaves_base(subclass, snapshot):
    model = make_model()
    optimizer = subclass(model.parameters(), lr=0.01)
    rest = snapshot(optimizer)

    def fail():
        raise KeyError("closure")

    with LayerwiseScaling(optimizer, layers(model)) as scaling:
        scaling.multipliers = MULTIPLIERS
        with pytest.raises(KeyError, match="closure"):
            optimizer.step(fail)
        assert snapshot(optimizer) == rest
        optimizer.step(closure_of(model, optimizer, 0))
        assert snapshot(optimizer) == rest


@pytest.mark.parametrize("kind", ["sgd", "foreach", "tensor"])
def test_resume_is_bit_for_bit(kind):
    def run(model, optimizer, schedule, steps):
        with LayerwiseScaling(optimizer, layers(model)) as scaling:
            scaling.multipliers = MULTIPLIERS
            for step in steps:
                optimizer.step(closure_of(model, optimizer, step))
                schedule.step()

    def build():
        model = make_model()
        optimizer = OPTIMIZERS[kind](groups(model, "mixed"))
        return model, optimizer, SCHEDULERS["cosine"](optimizer)

    straight, broken, resumed = build(), build(), build()
    run(*straight, range(6))
    run(*broken, range(3))
    for old, new in zip(broken, resumed, strict=True):
        new.load_state_dict(copy.deepcopy(old.state_dict()))
    run(*resumed, range(3, 6))
    torch.testing.assert_close(resumed[0].state_dict(), straight[0].state_dict(), rtol=0, atol=0)
    torch.testing.assert_close(resumed[1].state_dict(), straight[1].state_dict(), rtol=0, atol=0)
    assert resumed[2].get_last_lr() == straight[2].get_last_lr()


def test_load_state_dict_while_attached(toy, measured_rates):
    a, b, optimizer, scaling = toy
    scaling.multipliers = {"a": 2.0, "b": 3.0}
    with scaling:
        measured_rates(optimizer, a, b)
        state = optimizer.state_dict()
        state["param_groups"][0]["lr"] = 0.25
        optimizer.load_state_dict(state)
        assert measured_rates(optimizer, a, b) == [0.5, 0.75]
        assert [g["lr"] for g in optimizer.param_groups] == [0.25]


def test_group_added_while_attached(toy, measured_rates):
    a, b, optimizer, scaling = toy
    c = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    scaling = LayerwiseScaling(optimizer, {a: "a", b: "b", c: "b"})
    scaling.multipliers = {"a": 2.0, "b": 3.0}
    with scaling:
        assert measured_rates(optimizer, a, b) == [0.2, 0.1 * 3.0]
        optimizer.add_param_group({"params": [c], "lr": 1.0})
        assert measured_rates(optimizer, a, b, c) == [0.2, 0.1 * 3.0, 3.0]
        assert scaling.effective() == {"a": 0.2, "b": 0.1 * 3.0}
        del optimizer.param_groups[0]["params"][1]
        assert measured_rates(optimizer, a, b, c) == [0.2, 0.0, 3.0]
    assert [len(g["params"]) for g in optimizer.param_groups] == [1, 1]


def test_names_are_divided_with_the_parameters():
    model = make_model()
    names = {p: n for n, p in model.named_parameters()}
    optimizer = SGD(model.named_parameters(), lr=0.1)
    inside = []
    with LayerwiseScaling(optimizer, layers(model)) as scaling:
        scaling.multipliers = MULTIPLIERS
        optimizer.register_step_pre_hook(lambda o, args, kwargs: inside.extend(o.param_groups))
        optimizer.step()
    assert [len(g["params"]) for g in inside] == [4, 2, 2]
    assert [g["param_names"] for g in inside] == [[names[p] for p in g["params"]] for g in inside]


def test_shared_tensor_rate_is_the_same_object_afterwards(measured_rates):
    a, b, lr = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2)), torch.tensor(0.1)
    optimizer = SGD([{"params": [a]}, {"params": [b]}], lr=lr, foreach=False)
    with LayerwiseScaling(optimizer, {a: "a", b: "b"}) as scaling:
        scaling.multipliers = {"a": 2.0, "b": 3.0}
        rates = measured_rates(optimizer, a, b)
        assert all(group["lr"] is lr for group in optimizer.param_groups)
        lr.fill_(1.0)
        assert measured_rates(optimizer, a, b) == [2.0, 3.0]
    assert lr.item() == 1.0
    torch.testing.assert_close(
        torch.tensor(rates, dtype=torch.float64), torch.tensor([0.2, 0.3]).double(), rtol=6e-8, atol=0
    )


def test_two_hyperparameters_at_once(snapshot, hook_count):
    model, by_hand = make_model(), make_model()
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    hand = AdamW([{"params": [p]} for p in by_hand.parameters()], lr=0.01, weight_decay=0.1)
    decays = {"0": 3.0, "2": 1.0}
    for group, p in zip(hand.param_groups, by_hand.parameters(), strict=True):
        layer = layers(by_hand).get(p)
        group["lr"] *= MULTIPLIERS.get(layer, 1.0)
        group["weight_decay"] *= decays.get(layer, 1.0)
    rest = snapshot(optimizer)
    rates = LayerwiseScaling(optimizer, layers(model))
    decay = LayerwiseScaling(optimizer, layers(model), key="weight_decay")
    rates.multipliers, decay.multipliers = MULTIPLIERS, decays

    def fail():
        raise KeyError("closure")

    with rates, decay:
        for step in range(4):
            optimizer.step(closure_of(model, optimizer, step))
            hand.step(closure_of(by_hand, hand, step))
            assert snapshot(optimizer) == rest
            with pytest.raises(KeyError, match="closure"):
                optimizer.step(fail)
            assert snapshot(optimizer) == rest
    torch.testing.assert_close(model.state_dict(), by_hand.state_dict(), rtol=0, atol=0)
    assert hook_count(optimizer) == 0


def test_grad_scaler_skips_and_scales():
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = SGD([a, b], lr=0.25)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    with LayerwiseScaling(optimizer, {a: "a", b: "b"}) as scaling:
        scaling.multipliers = {"a": 2.0, "b": 4.0}
        for bad in (True, False):
            optimizer.zero_grad()
            scaler.scale((a * (math.inf if bad else 1.0) + b).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            assert (a[0].item(), b[0].item()) == ((0.0, 0.0) if bad else (-0.5, -1.0))
            assert [g["lr"] for g in optimizer.param_groups] == [0.25]


def test_attach_and_detach_twice_leave_nothing_behind(toy, measured_rates, hook_count):
    a, b, optimizer, scaling = toy
    scaling.multipliers = {"a": 2.0}
    for _ in range(2):
        scaling.attach()
        scaling.attach()
        assert scaling.attached
        assert hook_count(optimizer) == 5
        assert measured_rates(optimizer, a, b) == [0.2, 0.1]
        scaling.detach()
        scaling.detach()
        assert not scaling.attached
        assert hook_count(optimizer) == 0
        assert measured_rates(optimizer, a, b) == [0.1, 0.1]


def test_optimizer_is_freed(toy):
    a = nn.Parameter(torch.zeros(2))
    optimizer = SGD([a], lr=0.1)
    LayerwiseScaling(optimizer, {a: "a"}).attach()
    alive = weakref.ref(optimizer)
    del optimizer
    gc.collect()
    assert alive() is None


def test_multipliers_default_to_one_and_unnamed_layers_return_to_it(toy, measured_rates):
    a, b, optimizer, scaling = toy
    assert scaling.multipliers == {"a": 1.0, "b": 1.0}
    scaling.multipliers = {"a": 2}
    scaling.multipliers["b"] = 7.0  # a copy
    scaling.attach()
    assert measured_rates(optimizer, a, b) == [0.2, 0.1]
    scaling.multipliers = {"b": 0.5}
    assert scaling.multipliers == {"a": 1.0, "b": 0.5}
    assert measured_rates(optimizer, a, b) == [0.1, 0.05]


def test_equal_multipliers_do_not_divide_the_group(toy):
    _, _, optimizer, scaling = toy
    sizes = []
    with scaling:
        optimizer.register_step_pre_hook(lambda o, args, kwargs: sizes.append(len(o.param_groups)))
        for value in ({}, {"a": 2.0, "b": 2.0}, {"a": 2.0}):
            scaling.multipliers = value
            optimizer.step()
    assert sizes == [1, 1, 2]


def test_effective_takes_the_first_parameter_and_skips_other_optimizers_layers():
    a, b, c = (nn.Parameter(torch.zeros(2)) for _ in range(3))
    optimizer = SGD([{"params": [b], "lr": 0.5}, {"params": [a]}], lr=torch.tensor(0.25), foreach=False)
    scaling = LayerwiseScaling(optimizer, {a: "x", b: "x", c: "elsewhere"})
    scaling.multipliers = {"x": 2.0, "elsewhere": 3.0}
    assert scaling.effective() == {"x": 0.5}


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
def test_multiplier_must_be_finite_and_positive(toy, value):
    scaling = toy[3]
    with pytest.raises(ValueError, match=r"to be finite and positive, but got .* for layer 'b'"):
        scaling.multipliers = {"a": 1.0, "b": value}
    assert scaling.multipliers == {"a": 1.0, "b": 1.0}


def test_wrong_arguments(toy, hook_count):
    a, _, optimizer, scaling = toy
    with pytest.raises(ValueError, match=r"`multipliers` to be keyed by the layers of `layer_of`, but got \['z'\]"):
        scaling.multipliers = {"z": 1.0}
    with pytest.raises(TypeError, match="`layer_of` to be a mapping from parameters"):
        LayerwiseScaling(optimizer, {"a.weight": "a"})
    with pytest.raises(TypeError, match="`layer_of` to be a mapping from parameters"):
        LayerwiseScaling(optimizer, [(a, "a")])
    with pytest.raises(ValueError, match=r"a number as 'betas' .* got SGD, whose group 0 has none, but "):
        LayerwiseScaling(optimizer, {a: "a"}, key="betas")
    with pytest.raises(TypeError, match="LBFGS"):
        LayerwiseScaling(torch.optim.LBFGS([a]), {a: "a"})
    scaling.attach()
    with pytest.raises(RuntimeError, match="at most one scaling of 'lr'"):
        LayerwiseScaling(optimizer, {a: "a"}).attach()
    assert hook_count(optimizer) == 5


def test_a_rate_that_the_optimizer_finds_itself_is_refused_with_the_remedy():
    weight = torch.nn.Parameter(torch.ones(3, 3))
    optimizer = torch.optim.SGD([weight], lr=0.1)
    optimizer.param_groups[0]["lr"] = None  # as Adafactor's and other optimizers' with relative steps
    with pytest.raises(ValueError, match=r"SGD, whose group 0 has None, so that .* finds it itself\. Give it"):
        LayerwiseScaling(optimizer, {weight: "0"})
