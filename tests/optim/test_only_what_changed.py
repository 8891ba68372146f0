"""Stand-ins of a group are filled anew only where something changed, and nothing that changed is lost."""

import pytest
import torch
from torch import nn
from torch.optim import Optimizer

from lightning_farms.optim import LayerwiseScaling


class Around(Optimizer):
    """Does something to each group before its closure, and after its update."""

    def __init__(self, params, before=None, after=None, **options):
        super().__init__(params, {**options, "last": None})
        self.before, self.after = before or (lambda group: None), after or (lambda group: None)
        self.seen = []

    def step(self, closure=None):
        for group in self.param_groups:
            self.before(group)
        closure()
        self.seen.append([dict(group) for group in self.param_groups])
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.data -= group["lr"] * parameter.grad
            self.after(group)


def steps(optimizer, number, between=lambda step: None, closure=None):
    for step in range(number):
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = torch.ones_like(parameter)
        optimizer.step(closure or (lambda: None))
        between(step)


def build(**options):
    params = [nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(3)]
    optimizer = Around(params, lr=0.5, **options)
    scaling = LayerwiseScaling(optimizer, {p: f"l{i}" for i, p in enumerate(params)})
    scaling.multipliers = {"l0": 2.0, "l1": 0.25}
    scaling.attach()
    return params, optimizer


def count(name, how):
    def write(group):
        how(group, name, group.get(name, 0) + 1)

    return write


def by_pop(group, name, value):
    group.pop(name, None)
    group[name] = value


WRITERS = {
    "assigned": lambda group, name, value: group.__setitem__(name, value),
    "update": lambda group, name, value: group.update({name: value}),
    "or": lambda group, name, value: group.__ior__({name: value}),
    "popped": by_pop,
    "by dict itself": lambda group, name, value: dict.__setitem__(group, name, value),
}


@pytest.mark.parametrize("how", WRITERS)
@pytest.mark.parametrize("when", ["before", "after"])
def test_what_an_update_writes_reaches_the_group_whenever_it_is_written(when, how):
    params, optimizer = build(**{when: count("k", WRITERS[how])})
    steps(optimizer, 4)
    assert optimizer.param_groups[0]["k"] == 4
    assert [p[0].item() for p in params] == [-4.0, -0.5, -2.0]


@pytest.mark.parametrize("how", [how for how in WRITERS if how != "by dict itself"])
def test_a_closure_that_raises_finds_what_was_written_before_it(how):
    _, optimizer = build(before=count("k", WRITERS[how]))
    steps(optimizer, 2)
    with pytest.raises(RuntimeError):
        steps(optimizer, 1, closure=lambda: (_ for _ in ()).throw(RuntimeError("no")))
    assert optimizer.param_groups[0]["k"] == 3


def test_a_value_under_another_name_is_found_under_it():
    _, optimizer = build(after=lambda group: group.__setitem__("new", group.pop("last", None)))
    steps(optimizer, 2)
    assert "new" in optimizer.param_groups[0]


def test_rates_follow_the_group_whatever_else_changes_in_it():
    params, optimizer = build()
    group = optimizer.param_groups[0]

    def between(step):
        if step == 0:
            group["lr"] = 1.0
        elif step == 1:
            group["lr"], group["note"] = 0.25, "new"
        elif step == 2:
            del group["note"]
            group["lr"] = 1  # a whole number
        elif step == 3:
            group["lr"] = torch.tensor(2.0, dtype=torch.float64)
        elif step == 4:
            group["lr"].fill_(4.0)
        elif step == 5:
            group["lr"] = 0.5

    steps(optimizer, 7, between)
    total = 0.5 + 1.0 + 0.25 + 1 + 2.0 + 4.0 + 0.5
    assert [p[0].item() for p in params] == [-2 * total, -0.25 * total, -total]
    assert ["note" in groups[1] for groups in optimizer.seen] == [False, False, True, False, False, False, False]
    assert group["lr"] == 0.5
