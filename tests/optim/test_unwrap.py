"""Which optimizer inside a wrapper updates, and which wrappers are refused."""

import copy
import types

import pytest
import torch
from torch import nn
from torch.optim import SGD, Optimizer

from lightning_farms.optim import LayerwiseScaling, updating_optimizer


@pytest.fixture
def weights():
    return [nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(2))]


@pytest.fixture
def inner(weights):
    return SGD(weights, lr=0.5)


class Slow(Optimizer):
    """As Lookahead is written in several packages: no Optimizer.__init__, the inner one's list."""

    def __init__(self, optimizer):
        self.optimizer = optimizer
        self.param_groups = optimizer.param_groups

    def step(self, closure=None):
        return self.optimizer.step(closure)


class Plain:
    """A wrapper that is no Optimizer, with its groups as a property."""

    def __init__(self, base):
        self.base = base

    @property
    def param_groups(self):
        return self.base.param_groups

    def step(self, closure=None):
        self.prepare()
        self.finish()

    def prepare(self):
        pass

    def finish(self):
        self.base.step()

    def zero_grad(self):
        self.base.zero_grad()


class Proxy:
    """Has nothing of its own."""

    def __init__(self, optimizer):
        self.__dict__["wrapped"] = optimizer

    def __getattr__(self, name):
        return getattr(self.__dict__["wrapped"], name)


class Shared:
    """Has the inner one's method as an attribute."""

    def __init__(self, optimizer):
        self.wrapped, self.param_groups, self.step = optimizer, optimizer.param_groups, optimizer.step


class Halves(Optimizer):
    """SAM-like: an optimizer in its own right that has its base one's list; its second half steps."""

    def __init__(self, params, **options):
        super().__init__(params, options)
        self.base_optimizer = SGD(self.param_groups, **options)
        self.param_groups = self.base_optimizer.param_groups

    def first_step(self):
        pass

    def second_step(self):
        self.base_optimizer.step()

    def step(self, closure=None):
        self.first_step()
        self.second_step()


def update(optimizer, weights):
    for weight in weights:
        weight.data.fill_(1.0)
        weight.grad = torch.ones_like(weight)
    optimizer.step()
    return [1.0 - weight[0].item() for weight in weights]


@pytest.mark.parametrize("wrap", [Slow, Plain, Proxy, Shared, lambda inner: Slow(Plain(inner))])
def test_wrappers_that_hand_the_step_on(wrap, inner, weights):
    optimizer = wrap(inner)
    assert updating_optimizer(optimizer) is inner
    with LayerwiseScaling(optimizer, {weights[0]: "a", weights[1]: "b"}) as scaling:
        assert scaling.optimizer is inner
        scaling.multipliers = {"a": 2.0}
        assert update(optimizer, weights) == [1.0, 0.5]
        assert (scaling.steps, scaling.proved) == (1, True)


def test_an_optimizer_is_itself(inner):
    assert updating_optimizer(inner) is inner


def test_both_halves_of_a_step_made_by_hand_go_through_the_base_one(weights):
    optimizer = Halves(weights, lr=0.5)
    with LayerwiseScaling(optimizer, {weights[0]: "a", weights[1]: "b"}) as scaling:
        scaling.multipliers = {"a": 2.0}
        optimizer.step = lambda: (optimizer.first_step(), optimizer.second_step())
        assert update(optimizer, weights) == [1.0, 0.5]
        assert scaling.steps == 1


def test_lightning_and_fabric(inner):
    from lightning.fabric.wrappers import _FabricOptimizer
    from lightning.pytorch.core.optimizer import LightningOptimizer

    assert updating_optimizer(LightningOptimizer(inner)) is inner
    assert updating_optimizer(_FabricOptimizer(inner, strategy=None)) is inner
    assert updating_optimizer(LightningOptimizer(Slow(inner))) is inner


def test_accelerate(inner):
    accelerate = pytest.importorskip("accelerate")
    prepared = accelerate.Accelerator(cpu=True).prepare(inner)
    assert type(prepared).__name__ == "AcceleratedOptimizer"
    assert updating_optimizer(prepared) is inner


def test_a_trainers_wrapper_that_something_else_steps_is_refused(inner):
    base = type("AcceleratedOptimizer", (), {"__module__": "accelerate.optimizer", "step": lambda self: None})
    kind = type("SomeEnginesWrapper", (base,), {"step": lambda self: None})
    optimizer = kind()
    optimizer.optimizer = inner
    with pytest.raises(TypeError, match=r"SomeEnginesWrapper, whose SGD is stepped by something else. Use another"):
        updating_optimizer(optimizer)


def test_deepspeed_is_named_also_inside(inner):
    kind = type("DeepSpeedZeroOptimizer", (), {"__module__": "deepspeed.runtime.zero"})
    optimizer = Slow(inner)
    optimizer.optimizer = kind()
    optimizer.optimizer.param_groups, optimizer.optimizer.step = inner.param_groups, inner.step
    with pytest.raises(TypeError, match="DeepSpeed's DeepSpeedZeroOptimizer, which updates flattened copies"):
        updating_optimizer(optimizer)


class UsingRate(Slow):
    def step(self, closure=None):
        self.optimizer.step(closure)
        for group in self.param_groups:
            group["weight_sum"] = group.get("weight_sum", 0.0) + group["lr"] ** 2


class NeverStepping(Slow):
    def step(self, closure=None):
        for group in self.optimizer.param_groups:
            group["params"][0].data.zero_()


class Two(Slow):
    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.others = [SGD([nn.Parameter(torch.zeros(1))], lr=0.1)]


class OwnList(Slow):
    def __init__(self, optimizer):
        super().__init__(optimizer)
        self.param_groups = [dict(group) for group in optimizer.param_groups]


class OfCopies(Slow):
    def __init__(self, optimizer):
        self.params = [p for group in optimizer.param_groups for p in group["params"]]
        self.optimizer = SGD(copy.deepcopy(self.params), lr=0.1)


@pytest.mark.parametrize(
    ("kind", "why", "advice"),
    [
        (UsingRate, "uses the learning rate itself, outside the update of the SGD", "Use another optimizer"),
        (NeverStepping, "does not call the `step` of the SGD that it wraps", "Use another optimizer"),
        (Two, r"holds 2 optimizers \(SGD, SGD\)", "several that are stepped one by one"),
        (OwnList, "whose `optimizer` .SGD. has a list of its own", "pass that one"),
        (OfCopies, "has a list of its own. It updates copies of the parameters", "Use another optimizer"),
    ],
)
def test_refused_with_the_class_and_the_remedy(kind, why, advice, inner):
    with pytest.raises(TypeError, match=rf"{kind.__name__}, .*{why}") as refusal:
        updating_optimizer(kind(inner))
    assert advice in str(refusal.value)
    assert ("pass that one" in str(refusal.value)) == (kind is OwnList)


def test_an_optimizer_that_shares_the_list_and_uses_the_rate_itself_is_scaled_as_a_whole(weights):
    class Decoupled(Halves):
        def second_step(self):
            self.base_optimizer.step()
            for group in self.param_groups:
                for p in group["params"]:
                    p.data.sub_(group["lr"])

    optimizer = Decoupled(weights, lr=0.25)
    assert updating_optimizer(optimizer) is optimizer
    with LayerwiseScaling(optimizer, {weights[0]: "a", weights[1]: "b"}) as scaling:
        scaling.multipliers = {"a": 2.0}
        assert update(optimizer, weights) == [1.0, 0.5]


@pytest.mark.parametrize("thing", [None, 3, types.SimpleNamespace(step=print), nn.Linear(1, 1)])
def test_no_optimizer(thing):
    with pytest.raises(TypeError, match=rf"torch\.optim\.Optimizer with step hooks, but got {type(thing).__name__}"):
        updating_optimizer(thing)
