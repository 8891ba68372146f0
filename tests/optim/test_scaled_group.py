"""Which scaled groups there are, that they are kept, and which optimizers follow them."""

import itertools

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from lightning_farms.optim import LayerwiseScaling, layerwise_param_groups


def layer_net(number):
    """`number` parameters, each a layer of its own, in float64."""
    params = [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(number)]
    return params, {p: f"l{i}" for i, p in enumerate(params)}


def record_inside(optimizer):
    """The groups that each update finds, as dictionaries and as numbers of parameters."""
    inside = []
    optimizer.register_step_pre_hook(lambda o, args, kwargs: inside.append(list(o.param_groups)))
    return inside


def test_one_scaled_group_a_distinct_multiplier(measured_rates):
    params, layer_of = layer_net(5)
    optimizer = SGD([{"params": params[:4]}, {"params": params[4:]}], lr=0.5)
    own = list(optimizer.param_groups)
    with LayerwiseScaling(optimizer, layer_of) as scaling:
        inside = record_inside(optimizer)
        scaling.multipliers = {"l0": 2.0, "l2": 2.0, "l3": 4.0}
        assert measured_rates(optimizer, *params) == [1.0, 0.5, 1.0, 2.0, 0.5]
    ((a, b, c, rest),) = inside
    assert [len(group["params"]) for group in (a, b, c, rest)] == [2, 1, 1, 1]
    assert a["params"][1] is params[2]
    assert rest is own[1]  # all its multipliers are 1
    assert not any(group is own[0] for group in inside[0])


def test_no_scaled_groups_when_all_multipliers_are_one(measured_rates):
    params, layer_of = layer_net(3)
    optimizer = SGD(params, lr=0.5)
    with LayerwiseScaling(optimizer, layer_of) as scaling:
        inside = record_inside(optimizer)
        for multipliers in ({}, {"l0": 2.0}, {"l0": 1.0}):
            scaling.multipliers = multipliers
            measured_rates(optimizer, *params)
    assert [len(groups) for groups in inside] == [1, 2, 1]
    assert inside[0][0] is inside[2][0] is optimizer.param_groups[0]


@pytest.mark.parametrize("layerwise", [True, False])
def test_scaled_groups_are_kept_from_step_to_step_and_along_a_ramp(layerwise, measured_rates):
    params, layer_of = layer_net(3)
    named = ((f"p{i}", p) for i, p in enumerate(params))
    optimizer = SGD(layerwise_param_groups(named, layer_of) if layerwise else params, lr=0.5)
    with LayerwiseScaling(optimizer, layer_of) as scaling:
        inside = record_inside(optimizer)
        for step in range(1, 5):
            scaling.multipliers = {"l0": 1.0 + step, "l1": 1.0 + step / 2}
            optimizer.param_groups[0]["lr"] = 0.25
            base = [0.25, 0.5, 0.5] if layerwise else [0.25] * 3
            used = measured_rates(optimizer, *params)
            assert used == [base[0] * (1 + step), base[1] * (1 + step / 2), base[2]]
    assert [len(groups) for groups in inside] == [3] * 4
    assert all(x is y for groups in inside[1:] for x, y in zip(inside[0], groups, strict=True))


class Summing(SGD):
    """Sums its rates in its groups."""

    def step(self, closure=None):
        result = super().step(closure)
        for group in self.param_groups:
            group["sum"] = group.get("sum", 0.0) + group["lr"]
        return result


def test_layers_keep_the_values_on_which_they_disagree_whatever_the_multipliers_become():
    params, layer_of = layer_net(3)
    optimizer = Summing(params, lr=1.0)
    group = optimizer.param_groups[0]
    with LayerwiseScaling(optimizer, layer_of) as scaling:
        inside = record_inside(optimizer)

        def sums(**multipliers):
            scaling.multipliers = multipliers
            optimizer.step()
            return {"".join(layer_of[p] for p in g["params"]): g["sum"] for g in inside[-1]}

        assert sums() == {"l0l1l2": 1.0}
        assert sums(l0=2.0, l1=2.0) == {"l0": 3.0, "l1": 3.0, "l2": 2.0}
        assert sums(l0=2.0, l1=4.0) == {"l0": 5.0, "l1": 7.0, "l2": 3.0}
        assert group["sum"] == 5.0
        assert sums() == {"l0": 6.0, "l1": 8.0, "l2": 4.0}
        assert sums() == {"l0": 7.0, "l1": 9.0, "l2": 5.0}
        group["sum"] = 0.0  # someone else's change counts for all
        assert sums() == {"l0l1l2": 1.0}
        assert sums(l1=3.0) == {"l0": 2.0, "l1": 4.0, "l2": 2.0}
    assert optimizer.param_groups[0] is group
    assert group["sum"] == 2.0


class Sharing(SGD):
    """A wrapper whose groups are its base optimizer's list, like SAM's and Lookahead's."""

    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)
        self.base = SGD(self.param_groups, **kwargs)
        self.param_groups = self.base.param_groups

    def step(self, closure=None):
        result = None if closure is None else closure()
        self.base.step()
        return result


class Copying(Sharing):
    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)
        self.param_groups = list(self.base.param_groups)


class Remembering(SGD):
    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)
        self.first = self.param_groups[0]


class RememberingAll(SGD):
    def __init__(self, params, **kwargs):
        super().__init__(params, **kwargs)
        self.copies = tuple(self.param_groups)


def test_an_optimizer_that_shares_the_list_of_another_follows(measured_rates, snapshot):
    params, layer_of = layer_net(2)
    optimizer = Sharing(params, lr=0.5)
    rest = snapshot(optimizer)
    with LayerwiseScaling(optimizer, layer_of) as scaling:
        scaling.multipliers = {"l0": 2.0}
        assert measured_rates(optimizer, *params, closure=lambda: None) == [1.0, 0.5]
        assert snapshot(optimizer) == snapshot(optimizer.base) == rest


@pytest.mark.parametrize(("kind", "attribute"), [(Copying, "base"), (Remembering, "first"), (RememberingAll, "copies")])
def test_an_optimizer_that_keeps_groups_elsewhere_is_refused(kind, attribute):
    params, layer_of = layer_net(2)
    with pytest.raises(TypeError, match=rf"{kind.__name__}, (which keeps groups in|whose) `{attribute}`"):
        LayerwiseScaling(kind(params, lr=0.5), layer_of)


ORDERS = list(itertools.product([False, True], [False, True]))


@pytest.mark.parametrize(("rates_first", "rates_leave_first"), ORDERS)
def test_two_hyperparameters_divide_into_products(rates_first, rates_leave_first, snapshot):
    """Two rates times three decays: four scaled groups; from weight 1 with gradient 0 the change is lr * wd."""
    params, layer_of = layer_net(4)
    optimizer = AdamW(params, lr=0.5, weight_decay=0.25)
    rest = snapshot(optimizer)
    rates = LayerwiseScaling(optimizer, layer_of)
    decays = LayerwiseScaling(optimizer, layer_of, key="weight_decay")
    rates.multipliers = {"l2": 0.5, "l3": 0.5}
    decays.multipliers = {"l1": 0.0, "l3": 2.0}
    inside, seen = [], []

    def shrinkage():
        for p in params:
            p.data.fill_(1.0)
            p.grad = torch.zeros_like(p)
        optimizer.step(lambda: seen.append(snapshot(optimizer)))
        assert snapshot(optimizer) == rest == seen[-1]
        return [1.0 - p[0].item() for p in params]

    for scaling in (rates, decays) if rates_first else (decays, rates):
        scaling.attach()
    handle = optimizer.register_step_pre_hook(lambda o, args, kwargs: inside.append(snapshot(o)))
    assert shrinkage() == [0.125, 0.0, 0.0625, 0.125]
    assert inside == [rest]  # with a closure the window opens after it
    optimizer.step()
    assert {(g["lr"], g["weight_decay"], *g["params"]) for g in inside[1]} == {
        (0.5, 0.25, id(params[0])),
        (0.5, 0.0, id(params[1])),
        (0.25, 0.25, id(params[2])),
        (0.25, 0.5, id(params[3])),
    }
    handle.remove()
    assert rates.effective() == {"l0": 0.5, "l1": 0.5, "l2": 0.25, "l3": 0.25}
    assert decays.effective() == {"l0": 0.25, "l1": 0.0, "l2": 0.25, "l3": 0.5}
    first, second = (rates, decays) if rates_leave_first else (decays, rates)
    first.detach()
    alone = [0.125, 0.0, 0.125, 0.25] if rates_leave_first else [0.125, 0.125, 0.0625, 0.0625]
    assert shrinkage() == alone
    first.attach()
    assert shrinkage() == [0.125, 0.0, 0.0625, 0.125]
    first.detach()
    second.detach()
    assert shrinkage() == [0.125] * 4


def test_effective_inside_the_window_of_two_scalings(toy):
    _, _, optimizer, rates = toy
    decays = LayerwiseScaling(optimizer, rates._layer_of, key="weight_decay")
    rates.multipliers, decays.multipliers = {"a": 2.0}, {"b": 3.0}
    seen = []
    with rates, decays:
        optimizer.register_step_pre_hook(lambda *_: seen.append((rates.effective(), len(rates.trained_parameters()))))
        optimizer.step()
    assert seen == [({"a": 0.2, "b": 0.1}, 2)]


class Halving(SGD):
    """Halves its decay in every update."""

    def step(self, closure=None):
        result = super().step(closure)
        for group in self.param_groups:
            group["weight_decay"] *= 0.5
        return result


@pytest.mark.parametrize(("multipliers", "left"), [({"l0": 0.0}, 0.25), ({"l0": 0.0, "l1": 0.0}, 0.5)])
def test_decay_multiplied_by_zero_and_changed_by_the_update(multipliers, left):
    params, layer_of = layer_net(2)
    optimizer = Halving(params, lr=0.5, weight_decay=0.5)
    with LayerwiseScaling(optimizer, layer_of, key="weight_decay") as scaling:
        scaling.multipliers = multipliers
        optimizer.step()
    assert optimizer.param_groups[0]["weight_decay"] == left


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_multiplier_of_the_decay_must_be_finite_and_not_negative(toy, value):
    scaling = LayerwiseScaling(toy[2], toy[3]._layer_of, key="weight_decay")
    scaling.multipliers = {"a": 0.0}
    with pytest.raises(ValueError, match=r"to be finite and not negative, but got .* for layer 'b'"):
        scaling.multipliers = {"b": value}
    assert scaling.multipliers == {"a": 0.0, "b": 1.0}
