"""Updates that raise, run their parent's step, or write into their groups."""

import copy
import gc
import weakref

import pytest
import torch
from torch import nn
from torch.optim import SGD

from lightning_farms.optim import LayerwiseScaling
from lightning_farms.optim._watched_group import StandIn
from tests.optim.installable import classes


class FailingSGD(SGD):
    """Raises inside its update when told to."""

    fail = False

    def step(self, closure=None):
        if self.fail:
            raise ArithmeticError("update")
        return super().step(closure)


@pytest.mark.parametrize("remedy", ["restore", "detach", "state_dict", "load_state_dict", "step"])
def test_exception_in_the_update_is_undone(remedy, measured_rates, snapshot):
    a, b = nn.Parameter(torch.zeros(2, dtype=torch.float64)), nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = FailingSGD([a, b], lr=0.1)
    rest, saved = snapshot(optimizer), optimizer.state_dict()
    scaling = LayerwiseScaling(optimizer, {a: "a", b: "b"})
    scaling.multipliers = {"a": 2.0, "b": 3.0}
    scaling.attach()
    optimizer.fail = True
    for _ in range(2):
        with pytest.raises(ArithmeticError, match="update"):
            optimizer.step()
    optimizer.fail = False
    assert scaling.effective() == {"a": 0.2, "b": 0.1 * 3.0}
    if remedy == "step":
        assert measured_rates(optimizer, a, b) == [0.2, 0.1 * 3.0]
    elif remedy == "load_state_dict":
        optimizer.load_state_dict(saved)
    elif remedy == "state_dict":
        assert [g["lr"] for g in optimizer.state_dict()["param_groups"]] == [0.1]
    else:
        getattr(scaling, remedy)()
    assert snapshot(optimizer) == rest
    expected = [0.1, 0.1] if remedy == "detach" else [0.2, 0.1 * 3.0]
    assert measured_rates(optimizer, a, b) == expected
    assert snapshot(optimizer) == rest


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, KeyboardInterrupt])
def test_who_goes_on_after_an_exception_finds_the_users_groups(error, measured_rates):
    """A scheduler, and a handler that sets a rate of its own; also where both were made while attached."""

    class OutOfMemory(SGD):
        full = False

        def step(self, closure=None):
            super().step(closure)
            if self.full:
                raise error

    a, b = nn.Parameter(torch.zeros(2, dtype=torch.float64)), nn.Parameter(torch.zeros(2, dtype=torch.float64))
    optimizer = OutOfMemory([a, b], lr=0.1)
    early = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.5**step)
    with LayerwiseScaling(optimizer, {a: "a", b: "b"}) as scaling:
        scaling.multipliers = {"a": 2.0, "b": 3.0}
        late = torch.optim.lr_scheduler.MultiplicativeLR(optimizer, lambda step: 0.5)
        optimizer.full = True
        with pytest.raises(error):
            optimizer.step()
        assert len(optimizer.param_groups) == 1
        optimizer.full = False
        assert measured_rates(optimizer, a, b) == [0.2, 0.1 * 3.0]
        early.step()
        late.step()
        assert measured_rates(optimizer, a, b) == [0.025 * 2.0, 0.025 * 3.0]
        optimizer.full = True
        with pytest.raises(error):
            optimizer.step()
        optimizer.param_groups[0]["lr"] = 0.5
        optimizer.full = False
        assert measured_rates(optimizer, a, b) == [1.0, 1.5]


def test_the_guard_of_two_scalings_is_gone_with_the_second():
    weight = nn.Parameter(torch.zeros(2))
    optimizer = SGD([weight], lr=0.1, weight_decay=0.1)
    rates, decays = (LayerwiseScaling(optimizer, {weight: "a"}, key=key) for key in ("lr", "weight_decay"))
    for scaling in (rates, decays):
        scaling.attach()
    rates.detach()
    assert "step" in vars(optimizer)
    decays.detach()
    assert "step" not in vars(optimizer)


def test_group_added_inside_the_step_stays(toy, measured_rates):
    a, b, optimizer, scaling = toy
    c = nn.Parameter(torch.zeros(2, dtype=torch.float64))
    scaling.multipliers = {"a": 2.0, "b": 3.0}
    scaling.attach()
    handle = optimizer.register_step_pre_hook(lambda o, args, kwargs: o.add_param_group({"params": [c], "lr": 1.0}))
    assert measured_rates(optimizer, a, b, c) == [0.2, 0.1 * 3.0, 1.0]
    handle.remove()
    assert [(g["lr"], len(g["params"])) for g in optimizer.param_groups] == [(0.1, 2), (1.0, 1)]


class TwiceSGD(SGD):
    """Runs its parent's step twice, so that the outer step outlives the first inner one."""

    def step(self, closure=None):
        super().step(closure)
        super().step()


def test_step_that_runs_its_parents_step_twice(measured_rates):
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = TwiceSGD([a, b], lr=0.25)
    with LayerwiseScaling(optimizer, {a: "a", b: "b"}) as scaling:
        scaling.multipliers = {"a": 2.0, "b": 4.0}
        depths = []
        optimizer.register_step_post_hook(lambda o, args, kwargs: depths.append(len(o.param_groups)))
        assert measured_rates(optimizer, a, b) == [1.0, 2.0]
    assert depths == [2, 2, 1]  # open throughout the outer step, closed after it


def test_failed_closure_keeps_no_variables_of_the_caller_alive(toy):
    _, _, optimizer, scaling = toy
    scaling.multipliers = {"a": 2.0}
    scaling.attach()

    def caller():
        batch = torch.zeros(1)

        def fail():
            raise KeyError("closure")

        with pytest.raises(KeyError, match="closure"):
            optimizer.step(fail)
        return weakref.ref(batch)

    alive = caller()
    gc.collect()
    assert alive() is None


class Recorder(SGD):
    """Writes into its groups, as Prodigy and schedule-free optimizers do."""

    def step(self, closure=None):
        result = super().step(closure)
        for group in self.param_groups:
            group["k"] = group.get("k", 0) + 1
            group["lr_max"] = max(group.get("lr_max", 0.0), group["lr"])
            group["sum"] = group.get("sum", 0.0) + group["lr_max"]
        return result


def test_what_the_update_writes_into_the_groups_is_kept(measured_rates):
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = Recorder([a, b], lr=0.25)
    observed, stood_in = [], []
    with LayerwiseScaling(optimizer, {a: "a", b: "b"}) as scaling:
        scaling.multipliers = {"a": 2.0, "b": 4.0}
        optimizer.register_step_pre_hook(lambda o, args, kwargs: stood_in.extend(o.param_groups))
        optimizer.register_step_post_hook(lambda o, args, kwargs: observed.append(o.param_groups[0]["lr"]))
        for step in range(3):
            measured_rates(optimizer, a, b, closure=lambda: None)
            group = optimizer.param_groups[0]
            assert (group["k"], group["lr_max"], group["sum"], group["lr"]) == (step + 1, 0.5, 0.5 * (step + 1), 0.25)
            children = stood_in[-2:]
            assert [(c["k"], c["lr_max"], c["sum"]) for c in children] == [
                (step + 1, 0.25 * m, 0.25 * m * (step + 1)) for m in (2.0, 4.0)
            ]
        optimizer.param_groups[0]["sum"] = 10.0
        measured_rates(optimizer, a, b)
        assert [c["sum"] for c in children] == [10.5, 11.0]
        del optimizer.param_groups[0]["k"]
        measured_rates(optimizer, a, b)
        assert optimizer.param_groups[0]["k"] == 1
    assert observed[1::2] == [0.25] * 5  # a later hook sees the base again once the outermost step is over


class DecayingSGD(SGD):
    """Changes its own learning rate in the update."""

    in_place = False

    def step(self, closure=None):
        result = super().step(closure)
        for group in self.param_groups:
            if self.in_place:
                group["lr"].mul_(0.5)
            else:
                group["lr"] = group["lr"] * 0.5
        return result


@pytest.mark.parametrize("pure", [False, True])
@pytest.mark.parametrize(("lr", "in_place"), [(0.25, False), (torch.tensor(0.25), False), (torch.tensor(0.25), True)])
def test_rate_changed_by_the_update_itself(pure, lr, in_place, measured_rates):
    lr = copy.deepcopy(lr)
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = DecayingSGD([{"params": [a]}, {"params": [b]}] if pure else [a, b], lr=lr, foreach=False)
    optimizer.in_place = in_place
    with LayerwiseScaling(optimizer, {a: "a", b: "b"}) as scaling:
        scaling.multipliers = {"a": 2.0, "b": 4.0}
        for step in range(3):
            assert measured_rates(optimizer, a, b) == [0.5 / 2**step, 1.0 / 2**step]
            assert {float(g["lr"]) for g in optimizer.param_groups} == {0.25 / 2 ** (step + 1)}


@pytest.mark.parametrize("restored", [0, 1])
def test_restore_closes_the_windows_opened_later_first(restored, snapshot):
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    both, seen = [], []

    class Restoring(SGD):
        """Calls it in the middle of an update."""

        def step(self, closure=None):
            seen.append(len(self.param_groups))
            both[restored].restore()
            both[0].restore()
            seen.append(snapshot(self))

    optimizer = Restoring([a, b], lr=0.1, weight_decay=0.1)
    rest = snapshot(optimizer)
    both += [LayerwiseScaling(optimizer, {a: "a", b: "b"}, key=key) for key in ("lr", "weight_decay")]
    for scaling in both:
        scaling.multipliers = {"a": 2.0, "b": 3.0}
        scaling.attach()
    optimizer.step()
    assert seen == [2, rest]
    assert snapshot(optimizer) == rest


def test_detach_inside_the_closure(toy, measured_rates):
    a, b, optimizer, scaling = toy
    scaling.multipliers = {"a": 2.0}
    scaling.attach()
    assert measured_rates(optimizer, a, b, closure=scaling.detach) == [0.1, 0.1]
    assert len(optimizer.param_groups) == 1


class CopyingSGD(SGD):
    """Puts an equal number in its rate's place, as optimizers do that send their groups to other processes."""

    def step(self, closure=None):
        result = super().step(closure)
        for group in self.param_groups:
            group["lr"] = float(repr(group["lr"]))
        return result


def test_an_equal_number_in_the_rates_place_is_no_change(measured_rates):
    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = CopyingSGD([a, b], lr=0.1)
    with LayerwiseScaling(optimizer, {a: "a", b: "b"}) as scaling:
        for step in range(50):
            scaling.multipliers = {"a": 0.3 + step / 7, "b": 1.7}
            measured_rates(optimizer, a, b)
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(("name", "kind"), [pair for pair in classes("torch.optim") if pair[0] != "LBFGS"])
def test_pytorchs_own_optimizers_call_the_closure_before_they_read_what_is_scaled(name, kind):
    """Which is why the window opens after it."""
    weight = nn.Parameter(torch.ones(3, 3))
    optimizer = kind([weight], lr=0.1)
    group = StandIn(optimizer.param_groups[0])
    optimizer.param_groups[:] = [group]
    group.watch(True)

    def closure():
        assert group.read <= {"capturable"}, name
        weight.grad = torch.ones(3, 3)
        if name == "SparseAdam":
            weight.grad = weight.grad.to_sparse()
        return weight.detach().sum()

    optimizer.step(closure)
    assert {"params", "lr"} <= group.read
    assert not torch.equal(weight.detach(), torch.ones(3, 3))


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:.*Dynamo does not know how to trace")  # our hooks, which it leaves alone
def test_a_compiled_step_uses_the_multipliers():
    """Dynamo takes no groups but plain dictionaries."""
    results = []
    for compiled in (False, True):
        params = [torch.nn.Parameter(torch.ones(3)) for _ in range(3)]
        optimizer = torch.optim.SGD(params, lr=0.1, momentum=0.9)
        with LayerwiseScaling(optimizer, {p: str(i) for i, p in enumerate(params)}) as scaling:
            scaling.multipliers = {"0": 2.0, "1": 0.5}
            step = torch.compile(optimizer.step, backend="eager") if compiled else optimizer.step
            for _ in range(3):
                for p in params:
                    p.grad = p.detach() + 1
                step()
        assert scaling.proved
        assert optimizer.param_groups[0]["lr"] == 0.1
        results.append(torch.stack([p.detach() for p in params]))
    assert torch.equal(*results)
    assert len({row[0].item() for row in results[0]}) == 3
