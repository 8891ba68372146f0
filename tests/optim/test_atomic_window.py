"""Whatever interrupts a step finds the user's own groups and base values in `state_dict`, and disturbs nothing."""

import contextlib
import functools
import itertools
import signal
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

import lightning_farms.optim
from lightning_farms.optim import LayerwiseScaling

PACKAGE = str(Path(lightning_farms.optim.__file__).parent)


@contextlib.contextmanager
def at_every_opcode(action):
    """Call `action` before every opcode of the optim package's code: where a signal handler can run."""

    def trace(frame, event, argument):
        if not frame.f_code.co_filename.startswith(PACKAGE) or frame.f_code.co_filename.endswith("_watched_group.py"):
            return None  # what watches the first steps is called by the update, in its middle
        frame.f_trace_opcodes = True
        if event == "opcode":
            action(frame)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(before)


class Writer(SGD):
    """Counts and sums in its groups, and lowers its own rate for a moment (warm-up inside the optimizer)."""

    interruption = staticmethod(lambda: None)

    def step(self, closure=None):
        result = None if closure is None else closure()
        rates = [group["lr"] for group in self.param_groups]
        for group in self.param_groups:
            group["lr"] = group["lr"] * 0.5
        self.interruption()
        SGD.step.__wrapped__(self)  # without the step hooks once more
        for group, lr in zip(self.param_groups, rates, strict=True):
            group["lr"] = lr
            group["k"] = group.get("k", 0) + 1
            group["sum"] = group.get("sum", 0.0) + lr
        return result


def build(kind, scaled_keys=("lr",)):
    torch.manual_seed(0)
    a, b, c, d = (nn.Parameter(torch.randn(3)) for _ in range(4))
    options = {"momentum": 0.9} if issubclass(kind, SGD) else {}
    optimizer = kind(
        [{"params": [a, b]}, {"params": [c], "lr": 0.3}, {"params": [d]}], lr=0.1, weight_decay=0.1, **options
    )
    for key in scaled_keys:
        scaling = LayerwiseScaling(optimizer, {a: "a", b: "b", c: "c"}, key=key)
        scaling.multipliers = {"a": 2.0, "b": 0.3, "c": 1.7} if key == "lr" else {"b": 0.0, "c": 3.0}
        scaling.attach()
    return (a, b, c, d), optimizer


def plain(state_dict):
    """The state as numbers, for comparison by ==."""
    return {
        "param_groups": [dict(group) for group in state_dict["param_groups"]],
        "state": {
            index: {key: torch.as_tensor(value).tolist() for key, value in state.items()}
            for index, state in state_dict["state"].items()
        },
    }


def step(parameters, optimizer, number, with_closure=True):
    def closure():
        for parameter in parameters:
            parameter.grad = parameter.detach() + number
        return torch.zeros(())

    if with_closure:
        return optimizer.step(closure)
    closure()
    return optimizer.step()


@pytest.mark.parametrize(
    ("kind", "scaled_keys", "with_closure"),
    [
        (SGD, ("lr",), True),
        (AdamW, ("lr", "weight_decay"), True),
        (Writer, ("weight_decay", "lr"), True),
        (Writer, ("lr",), False),
    ],
)
def test_state_dict_at_every_opcode_of_a_step(kind, scaled_keys, with_closure):
    parameters, optimizer = build(kind, scaled_keys)
    twins, undisturbed = build(kind, scaled_keys)
    own = list(optimizer.param_groups)
    for number in range(2):
        for group in [*optimizer.param_groups, *undisturbed.param_groups]:
            group[scaled_keys[0]] *= 1 - number / 2  # as a scheduler does
        rest = plain(undisturbed.state_dict())
        step(twins, undisturbed, number, with_closure)
        afterwards = plain(undisturbed.state_dict())
        seen = []

        def interrupt(frame, seen=seen):
            before = list(optimizer.param_groups)
            inside = [dict(group) for group in before]
            seen.append((plain(optimizer.state_dict()), frame.f_code.co_name))
            assert all(x is y for x, y in zip(before, optimizer.param_groups, strict=True))
            assert all(
                x.keys() == y.keys() and all(x[key] is y[key] for key in x)
                for x, y in zip(inside, before, strict=True)
                if not any(y is group for group in own)
            )

        with at_every_opcode(interrupt):
            step(parameters, optimizer, number, with_closure)
        updated = [state == afterwards for state, _ in seen]
        assert updated == sorted(updated)  # first the state before the update, then the state after it
        assert all(state == rest for (state, _), done in zip(seen, updated, strict=True) if not done)
        filling = "rescale" if number and kind is not Writer else "fill"
        assert {filling, "write_back", "_open", "_close"} <= {name for _, name in seen}
        assert len(set(updated)) == 2
    assert [x is y for x, y in zip(own, optimizer.param_groups, strict=True)] == [True] * 3
    assert plain(optimizer.state_dict()) == plain(undisturbed.state_dict())
    assert all(torch.equal(x, y) for x, y in zip(parameters, twins, strict=True))


@pytest.mark.slow
def test_state_dict_at_any_one_opcode_after_the_update_holds_what_the_update_wrote():
    """One interruption a step: an earlier one would carry over what this one might miss."""

    a, b = nn.Parameter(torch.zeros(2)), nn.Parameter(torch.zeros(2))
    optimizer = Writer([a, b], lr=0.1)
    scaling = LayerwiseScaling(optimizer, {a: "a", b: "b"})
    scaling.multipliers = {"a": 2.0}
    scaling.attach()
    closing, saved = [], []

    def interrupt(frame, position):
        if closing or frame.f_code.co_name == "_after_step":
            closing.append(frame.f_code.co_name)
            if len(closing) == position:
                saved.append(optimizer.state_dict()["param_groups"][0])

    for position in itertools.count(1):
        closing.clear()
        with at_every_opcode(functools.partial(interrupt, position=position)):
            optimizer.step()
        if not saved:
            break
        assert saved.pop() == optimizer.state_dict()["param_groups"][0], (position, closing[position - 1])
        assert optimizer.param_groups[0]["k"] == position
    assert {"_close", "write_back"} <= set(closing)


@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 17])
def test_one_state_dict_while_a_step_ends_and_one_after_it_leave_the_scaling_in_force(every):
    parameters, optimizer = build(AdamW, ("lr", "weight_decay"))
    twins, undisturbed = build(AdamW, ("lr", "weight_decay"))
    closing = []

    def interrupt(frame, position):
        if closing or frame.f_code.co_name == "_after_step":
            closing.append(frame.f_code.co_name)
            if len(closing) == position:
                optimizer.state_dict()

    for position in itertools.count(1, every):
        closing.clear()
        with at_every_opcode(functools.partial(interrupt, position=position)):
            step(parameters, optimizer, position % 7)
        optimizer.state_dict()
        step(twins, undisturbed, position % 7)
        assert all(torch.equal(x, y) for x, y in zip(parameters, twins, strict=True)), (position, closing[position - 1])
        if len(closing) < position:
            break
    assert {"_close", "write_back"} <= set(closing)


def test_state_dict_taken_inside_another_at_every_opcode():
    parameters, optimizer = build(Writer, ("lr", "weight_decay"))
    twins, undisturbed = build(Writer, ("lr", "weight_decay"))
    rest = plain(optimizer.state_dict())
    seen = []

    def snapshot_under_way(*_):
        with at_every_opcode(lambda frame: seen.append(plain(optimizer.state_dict()))):
            seen.append(plain(optimizer.state_dict()))

    optimizer.register_step_pre_hook(snapshot_under_way)
    step(parameters, optimizer, 0)
    step(twins, undisturbed, 0)
    assert len(seen) > 300
    assert all(state == rest for state in seen)
    assert all(torch.equal(x, y) for x, y in zip(parameters, twins, strict=True))


def test_state_dict_in_the_middle_of_an_update_leaves_what_the_update_takes_back(measured_rates):
    parameters, optimizer = build(Writer)
    twins, undisturbed = build(Writer)
    seen = []
    optimizer.interruption = lambda: seen.append(optimizer.state_dict()["param_groups"])
    for number in range(2):
        step(parameters, optimizer, number)
        step(twins, undisturbed, number)
        assert [group["lr"] for group in optimizer.param_groups] == [0.1, 0.3, 0.1]
        assert plain(optimizer.state_dict()) == plain(undisturbed.state_dict())
    assert [[group["lr"] for group in groups] for groups in seen] == [[0.05, 0.15, 0.05]] * 2  # as without multipliers
    assert [len(group["params"]) for group in seen[0]] == [2, 1, 1]
    assert all(torch.equal(x, y) for x, y in zip(parameters, twins, strict=True))


def test_state_dict_inside_the_closure_leaves_the_window_shut(toy, snapshot):
    a, b, optimizer, scaling = toy
    scaling.multipliers = {"a": 2.0, "b": 3.0}
    scaling.attach()
    rest, seen = snapshot(optimizer), []

    def closure():
        for parameter in (a, b):
            parameter.grad = torch.ones_like(parameter)
        optimizer.state_dict()
        seen.append(snapshot(optimizer))

    optimizer.step(closure)
    assert seen == [rest]
    assert (a[0].item(), b[0].item()) == (-0.2, -0.1 * 3.0)


@pytest.mark.parametrize("where", ["closure", "update"])
def test_signal_raised_in_a_step(where):
    parameters, optimizer = build(Writer)
    twins, undisturbed = build(Writer)
    saved = []
    raise_it = lambda: signal.raise_signal(signal.SIGUSR1)  # noqa: E731
    former = signal.signal(signal.SIGUSR1, lambda *_: saved.append(plain(optimizer.state_dict())))
    try:
        if where == "update":
            optimizer.interruption = raise_it
        for parameter in parameters:
            parameter.grad = parameter.detach() + 1
        optimizer.step(raise_it if where == "closure" else lambda: None)
    finally:
        signal.signal(signal.SIGUSR1, former)
    step(twins, undisturbed, 1)
    (groups,) = [state["param_groups"] for state in saved]
    expected = [0.1, 0.3, 0.1] if where == "closure" else [0.05, 0.15, 0.05]
    assert [(group["lr"], len(group["params"])) for group in groups] == list(zip(expected, [2, 1, 1], strict=True))
    assert all(torch.equal(x, y) for x, y in zip(parameters, twins, strict=True))


def test_timer_signals_during_many_steps():
    parameters, optimizer = build(AdamW, ("lr", "weight_decay"))
    twins, undisturbed = build(AdamW, ("lr", "weight_decay"))
    rest = [(group["lr"], group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
    saved = []

    def save(*_):
        groups = optimizer.state_dict()["param_groups"]
        saved.append([(group["lr"], group["weight_decay"], len(group["params"])) for group in groups])

    former = signal.signal(signal.SIGALRM, save)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 5e-4)
    try:
        for number in range(300):
            step(parameters, optimizer, number % 7)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, former)
    for number in range(300):
        step(twins, undisturbed, number % 7)
    assert len(saved) > 20
    assert all(groups == rest for groups in saved)
    assert all(torch.equal(x, y) for x, y in zip(parameters, twins, strict=True))


@pytest.mark.parametrize("former_steps", [0, 1])
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 17])
def test_an_interrupt_raised_at_any_opcode_is_put_right_by_the_next_step(every, former_steps, measured_rates, snapshot):
    """Ctrl-C inside our own code: whatever it leaves, a later step and a checkpoint are right."""

    def build_toy():
        a, b = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
        optimizer = SGD([a, b], lr=0.1)
        scaling = LayerwiseScaling(optimizer, {a: "a", b: "b"})
        scaling.multipliers = {"a": 2.0, "b": 3.0}
        scaling.attach()
        for _ in range(former_steps):  # then there are scaled groups, in which only the rate is to change
            optimizer.param_groups[0]["lr"] = 0.7
            measured_rates(optimizer, a, b, closure=lambda: None)
            optimizer.param_groups[0]["lr"] = 0.1
        return a, b, optimizer

    total = []
    a, b, optimizer = build_toy()
    with at_every_opcode(lambda frame: total.append(0)):
        measured_rates(optimizer, a, b, closure=lambda: None)
    for position in range(0, len(total), every):
        a, b, optimizer = build_toy()
        rest, count = snapshot(optimizer), []

        def interrupt(frame, count=count, position=position):
            count.append(0)
            if len(count) == position + 1:
                raise KeyboardInterrupt

        with at_every_opcode(interrupt), pytest.raises(KeyboardInterrupt):
            measured_rates(optimizer, a, b, closure=lambda: None)
        assert [(g["lr"], len(g["params"])) for g in optimizer.state_dict()["param_groups"]] == [(0.1, 2)], position
        assert measured_rates(optimizer, a, b, closure=lambda: None) == [0.2, 0.1 * 3.0], position
        assert snapshot(optimizer) == rest, position
