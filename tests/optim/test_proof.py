"""What the first steps tell of optimizers that do not use the values they are given."""

import copy

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer, lr_scheduler

from lightning_farms.optim import LayerwiseScaling, layerwise_param_groups

LAYERS = ("a", "b", "c")


def build(kind, grouped=False, **options):
    params = [nn.Parameter(torch.ones(2)) for _ in LAYERS]
    layer_of = dict(zip(params, LAYERS, strict=True))
    named = [(name, p) for p, name in layer_of.items()]
    optimizer = kind(layerwise_param_groups(named, layer_of) if grouped else params, lr=0.5, **options)
    return params, optimizer, LayerwiseScaling(optimizer, layer_of)


def steps(params, optimizer, number=1):
    for _ in range(number):
        for p in params:
            p.grad = torch.ones_like(p)
        optimizer.step()


class Simple(Optimizer):
    """SGD written by hand; subclasses break it."""

    def __init__(self, params, lr):
        super().__init__(params, {"lr": lr})

    def groups(self):
        return self.param_groups

    def rate(self, group):
        return group["lr"]

    def params(self, group):
        return group["params"]

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.groups():
            for p in self.params(group):
                self.update(p, self.rate(group))

    def update(self, p, rate):
        p.sub_(p.grad, alpha=rate)


class Zipping(Simple):
    """Knows how many groups it has, in a way that the start cannot tell."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.number = len(self.param_groups)

    def groups(self):
        return [group for group, _ in zip(self.param_groups, range(self.number), strict=False)]


class FirstRate(Simple):
    def rate(self, group):
        return next(iter(self.param_groups))["lr"]


class OwnRate(Simple):
    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.lr = lr

    def rate(self, group):
        return self.lr


class OwnRateByData(OwnRate):
    def update(self, p, rate):
        p.data.sub_(p.grad, alpha=rate)


class AllForEach(Simple):
    """Goes over all parameters once a group."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.all = [p for group in self.param_groups for p in group["params"]]

    def params(self, group):
        return [p for p in self.all if group["params"]]

    def update(self, p, rate):
        super().update(p, rate)
        self.state[p]["step"] = self.state[p].get("step", 0) + 1


class Average(Simple):
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            self.state["average"] = 0.9 * self.state.get("average", 1.0) + group["lr"]


class Cached(Simple):
    """A buffer in the groups, made once for all of them from the defaults."""

    def __init__(self, params, lr):
        Optimizer.__init__(self, params, {"lr": lr, "buffer": [None, None]})
        self.calls = 0

    def step(self, closure=None):
        self.calls += 1
        super().step()

    def rate(self, group):
        if group["buffer"][0] != self.calls:
            group["buffer"][:] = [self.calls, group["lr"]]
        return group["buffer"][1]


class Scheduling(Simple):
    """Sets the rate of all groups in its step, and not by a factor."""

    def step(self, closure=None):
        for group in self.param_groups:
            group["lr"] = 0.5
        super().step()


class SchedulingAfterwards(Simple):
    def step(self, closure=None):
        super().step()
        for group in self.param_groups:
            group["lr"] = 0.5


@pytest.mark.parametrize(
    ("kind", "grouped", "after", "why"),
    [
        (Zipping, False, 1, "some parameters do not change"),
        (FirstRate, False, 3, "the update reads 'lr' from some of the groups only, and uses one value for all"),
        (FirstRate, True, 3, "the update reads 'lr' from some of the groups only, and uses one value for all"),
        (OwnRate, False, 3, "the update never reads 'lr' from its groups"),
        (OwnRateByData, False, 3, "the update never reads 'lr' from its groups"),
        (AllForEach, False, 1, "parameters were updated 3 times in one step, in place of 1"),
        (Average, False, 1, r"the optimizer keeps for all parameters \('average'\)"),
        (Scheduling, False, 1, "the update sets 'lr' of all groups to one value"),
        (Scheduling, True, 1, "the update sets 'lr' of all groups to one value"),
        (SchedulingAfterwards, False, 1, "the update sets 'lr' of all groups to one value"),
        (SchedulingAfterwards, True, 1, "the update sets 'lr' of all groups to one value"),
        (Cached, True, 1, r"groups share one list as 'buffer'.*copy\.deepcopy"),
    ],
)
@pytest.mark.parametrize("base_steps", [0, 2])
def test_found_at_the_first_steps_and_base_values_from_then_on(kind, grouped, after, why, base_steps):
    params, optimizer, scaling = build(kind, grouped)
    with scaling:
        steps(params, optimizer, base_steps)
        assert scaling.fault is None
        scaling.multipliers = {"a": 2.0, "b": 0.5}
        steps(params, optimizer, after - 1)
        assert (scaling.fault, scaling.effective()["a"]) == (None, 1.0)
        steps(params, optimizer)
        assert scaling.fault is not None
        assert not scaling.proved
        assert torch.tensor([scaling.steps]).item() == base_steps + after
        with pytest.raises(AssertionError, match=why):
            raise AssertionError(scaling.fault)
        assert scaling.effective() == dict.fromkeys(LAYERS, 0.5)
        seen = []
        optimizer.register_step_pre_hook(lambda *_: seen.extend(optimizer.param_groups))
        steps(params, optimizer)
        assert all(x is y for x, y in zip(seen, optimizer.param_groups, strict=True))


def test_a_stepwise_rate_is_unharmed_where_each_group_has_its_own_buffer():
    params, optimizer, scaling = build(Cached, grouped=True)
    for group in optimizer.param_groups:
        group["buffer"] = copy.deepcopy(group["buffer"])
    with scaling:
        scaling.multipliers = {"a": 2.0, "b": 0.5}
        steps(params, optimizer)
        assert (scaling.fault, scaling.proved) == (None, True)
    assert [1 - p[0].item() for p in params] == [1.0, 0.25, 0.5]


class Accumulating(Simple):
    """Uses every third gradient; in between it only looks at its parameters."""

    calls = 0

    def step(self, closure=None):
        self.calls += 1
        if self.calls % 3 == 0:
            super().step()
        elif self.calls % 3 == 1:
            return [group["params"][0].device for group in self.param_groups[:1]]


class ByItems(Simple):
    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            self._update(**group)

    def _update(self, params, lr, **_):
        for p in params:
            p.sub_(p.grad, alpha=lr)


class Counter(Simple):
    """A number for all parameters that moves on once a step."""

    def step(self, closure=None):
        self.state["k"] = torch.as_tensor(self.state.get("k", 0)) + 1
        super().step()


class Twice(AdamW):
    """Steps twice by itself, whatever the groups."""

    def step(self, closure=None):
        super().step()
        super().step()


@pytest.mark.parametrize("kind", [Simple, SGD, AdamW, Accumulating, ByItems, Counter, Twice])
@pytest.mark.parametrize("grouped", [False, True])
def test_optimizers_that_use_what_they_are_given_are_not_condemned(kind, grouped):
    params, optimizer, scaling = build(kind, grouped)
    with scaling:
        steps(params, optimizer, 3)
        assert not scaling.proved
        scaling.multipliers = {"a": 2.0, "b": 0.5}
        steps(params, optimizer, 12)
        assert (scaling.fault, scaling.proved, scaling.steps) == (None, True, 15)
        assert {type(group) for group in optimizer.param_groups} == {dict}


def test_parameters_without_a_gradient_prove_and_disprove_nothing():
    params, optimizer, scaling = build(SGD)
    with scaling:
        scaling.multipliers = {"a": 2.0, "b": 0.5}
        for p in params:
            p.grad = None
        optimizer.step()
        assert (scaling.fault, scaling.proved) == (None, False)
        steps(params[:1], optimizer)
        assert (scaling.fault, scaling.proved) == (None, True)


class ByData(Simple):
    """Leaves the versions of its parameters as they are."""

    def update(self, p, rate):
        p.data.add_(p.grad, alpha=-rate)


def test_a_group_behind_a_closed_gate_stands_still_with_good_reason():
    params = [nn.Parameter(torch.ones(2)) for _ in LAYERS]
    optimizer = ByData([{"params": params[:2]}, {"params": params[2:], "lr": 0.3}], lr=0.5)
    with LayerwiseScaling(optimizer, dict(zip(params[:2], LAYERS, strict=False))) as scaling:
        scaling.multipliers = {"a": 2.0, "b": 0.5}
        for p in params:
            p.grad = torch.ones_like(p)
        params[2].grad.zero_()
        optimizer.step()
        assert scaling.fault is None
        steps(params, optimizer)
        assert (scaling.fault, params[2].tolist()) == (None, pytest.approx([0.7, 0.7]))


def test_groups_are_plain_again_once_it_is_proved():
    params, optimizer, scaling = build(Simple)
    inside = []
    optimizer.register_step_post_hook(lambda *_: inside.append(optimizer.param_groups[0]))
    with scaling:
        optimizer.register_step_pre_hook(lambda *_: inside.append(type(optimizer.param_groups[0]).__getitem__))
        scaling.multipliers = {"a": 2.0}
        steps(params, optimizer, 2)
    first, _, second, _ = inside
    assert first is not dict.__getitem__
    assert second is dict.__getitem__


def test_two_scalings_are_both_proved():
    params = [nn.Parameter(torch.ones(2)) for _ in LAYERS]
    layer_of = dict(zip(params, LAYERS, strict=True))
    optimizer = AdamW(params, lr=0.5)
    both = [LayerwiseScaling(optimizer, layer_of, key=key) for key in ("lr", "weight_decay")]
    for scaling, multipliers in zip(both, ({"a": 2.0}, {"b": 3.0, "c": 4.0}), strict=True):
        scaling.multipliers = multipliers
        scaling.attach()
    steps(params, optimizer)
    assert [scaling.proved for scaling in both] == [True, True]
    both[0].multipliers = {"b": 2.0}
    steps(params, optimizer, 4)
    assert [(scaling.proved, scaling.fault) for scaling in both] == [(True, None)] * 2


def test_two_scalings_of_which_one_is_not_used():
    class NoDecay(Simple):
        def __init__(self, params, lr):
            Optimizer.__init__(self, params, {"lr": lr, "weight_decay": 0.1})

    params, optimizer, rates = build(NoDecay)
    decays = LayerwiseScaling(optimizer, dict(zip(params, LAYERS, strict=True)), key="weight_decay")
    rates.multipliers, decays.multipliers = {"a": 2.0}, {"b": 3.0}
    with rates, decays:
        steps(params, optimizer, 4)
        assert (rates.fault, rates.proved) == (None, True)
        assert "never reads 'weight_decay'" in decays.fault


def test_disable():
    params, optimizer, scaling = build(SGD)
    with scaling:
        scaling.multipliers = {"a": 2.0}
        steps(params, optimizer)
        scaling.disable("someone said so")
        assert (scaling.fault, scaling.effective()["a"]) == ("someone said so", 0.5)
        steps(params, optimizer)
    assert [1 - p[0].item() for p in params] == [1.5, 1.0, 1.0]
    other = LayerwiseScaling(optimizer, dict(zip(params, LAYERS, strict=True)))
    other.remember(scaling)
    assert other.fault == "someone said so"


class Stopped(Simple):
    """Fails where it has more groups than at its start."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        self.limits = {index: lr for index, _ in enumerate(self.param_groups, 1)}

    def step(self, closure=None):
        if closure is not None:
            closure()
        for number, _ in enumerate(self.param_groups, 1):
            self.limits[number]


def test_an_exception_of_the_first_step_in_force_gets_a_note():
    params, optimizer, scaling = build(Stopped)
    with scaling:
        steps(params, optimizer)
        scaling.multipliers = {"a": 2.0}
        with pytest.raises(KeyError) as raised:
            steps(params, optimizer)
        assert "layerwise_param_groups" in raised.value.__notes__[0]
        assert scaling.steps == 1

        def fail():
            raise RuntimeError("out of data")

        with pytest.raises(RuntimeError, match="out of data") as raised:
            optimizer.step(fail)
        assert not hasattr(raised.value, "__notes__")  # not the optimizer's
    assert "step" not in vars(optimizer)


def test_the_note_leaves_schedulers_alone():
    params, optimizer, scaling = build(Simple)
    with scaling:
        scaling.multipliers = {"a": 2.0}
        scheduler = lr_scheduler.StepLR(optimizer, 1)
        steps(params, optimizer)
        scheduler.step()  # warns if `step` was put aside
        later = vars(optimizer)["step"]
    assert vars(optimizer)["step"] is later
    steps(params, optimizer)
    assert optimizer.param_groups[0]["lr"] == 0.05


def test_a_change_of_what_is_trained_is_told_before_the_step():
    params, optimizer, scaling = build(SGD)
    told = []
    scaling.on_trained_change = lambda: told.append(len(optimizer.param_groups))
    with scaling:
        params[0].requires_grad_(False)
        steps(params[1:], optimizer, 2)
        assert told == [1]  # at the first step too: a resumed run has no former one
        params[0].requires_grad_(True)
        scaling.multipliers = {"a": 2.0}
        steps(params, optimizer, 2)
        assert told == [1, 1]
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]})
        steps(params, optimizer, 2)
        assert told == [1, 1, 2]


class Elsewhere(torch.optim.Optimizer):
    """Knows the parameters, or the groups, from its construction."""

    def __init__(self, params, lr, kind):
        super().__init__(params, {"lr": lr})
        groups = self.param_groups
        pairs = [(p, group) for group in groups for p in group["params"]]
        self.update = {
            "parameters": lambda: [self._go(p, next(iter(self.param_groups))["lr"]) for p, _ in pairs],
            "pairs": lambda: [self._go(p, group["lr"]) for p, group in pairs],
            "backward": lambda: None,
        }[kind]
        for p, group in pairs if kind == "backward" else ():
            p.register_post_accumulate_grad_hook(lambda p, group=group: self._go(p, group["lr"]))

    def _go(self, parameter, lr):
        parameter.data.add_(parameter.grad, alpha=-lr)

    def step(self, closure=None):
        self.update()


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("parameters", "does not take the parameters from its `param_groups`"),
        ("pairs", "does not take the parameters from"),
        ("backward", "change outside of `step`"),
    ],
)
def test_an_update_that_goes_past_the_groups_is_found_out(kind, reason):
    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizer = Elsewhere([a, b], 0.1, kind)
    with LayerwiseScaling(optimizer, {a: "a", b: "b"}) as scaling:
        scaling.multipliers = {"a": 2.0, "b": 0.5}
        for _ in range(12):
            optimizer.zero_grad()
            (a * b).sum().backward()
            optimizer.step()
    assert reason in scaling.fault
    assert not scaling.proved


class Copying(torch.optim.Optimizer):
    """Puts new dictionaries in the place of its groups: copies that count, or groups of its own making."""

    def __init__(self, params, lr, merges=False):
        super().__init__(params, {"lr": lr})
        self.merges = merges

    def step(self, closure=None):
        self.param_groups = [{**group, "count": group.get("count", 0) + 1} for group in self.param_groups]
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data.add_(parameter.grad, alpha=-group["lr"])
        if self.merges:
            params = [p for group in self.param_groups for p in group["params"]]
            self.param_groups = [{**self.param_groups[0], "params": params}]


@pytest.mark.parametrize("merges", [False, True])
def test_an_optimizer_that_replaces_its_groups_keeps_no_multiplier(merges):
    def run(optimizer, before):
        for step in range(4):
            before(step)
            for p in (p for group in optimizer.param_groups for p in group["params"]):
                p.grad = torch.ones_like(p)
            optimizer.step()

    a, b, c, d = (torch.nn.Parameter(torch.ones(2)) for _ in range(4))
    optimizer = Copying([a, b], 0.5, merges)
    with LayerwiseScaling(optimizer, {a: "a", b: "b"}) as scaling:
        run(optimizer, lambda step: setattr(scaling, "multipliers", {"a": 2.0, "b": 0.25 * (1 + step)}))
        assert [(len(g["params"]), g["lr"]) for g in optimizer.param_groups] == [(2, 0.5)]
    by_hand = Copying([{"params": [c], "lr": 1.0}, {"params": [d]}], 0.5)
    run(by_hand, lambda step: by_hand.param_groups[1].update(lr=0.125 * (1 + step)))
    assert (scaling.fault is None) is not merges
    if not merges:
        assert torch.equal(a, c)
        assert torch.equal(b, d)
        assert optimizer.param_groups[0]["count"] == 4


def test_a_rate_that_is_read_at_the_first_step_only_is_found_out_when_others_are_asked_for():
    class Keeping(torch.optim.Optimizer):
        def step(self, closure=None):
            for group in self.param_groups:
                for p in group["params"]:
                    rate = self.state[p]["rate"] if self.state[p] else group["lr"]
                    self.state[p]["rate"] = rate
                    p.data.add_(p.grad, alpha=-rate)

    a, b = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    a.grad, b.grad = torch.ones(2), torch.ones(2)
    optimizer = Keeping([a, b], {"lr": 1e-3})
    with LayerwiseScaling(optimizer, {a: "a", b: "b"}) as scaling:
        for ask in range(2):
            scaling.multipliers = {"a": 2.0, "b": 0.5 + ask}
            for _ in range(60):
                optimizer.step()
            assert (scaling.fault is None) is (ask == 0)
    assert "never reads 'lr'" in scaling.fault
