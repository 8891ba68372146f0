"""What is asked for and what the updates use: found out at the first steps, said once, and taken into account."""

import types

import pytest
import torch
from torch import nn

from lightning_farms import Balancer, LinearMap
from lightning_farms.analysis import Selection


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(16, n) for n in (16, 16, 12)))


def train(model, optimizer, balancer=None, epochs=3):
    for _ in range(epochs):
        if balancer is not None:
            balancer.update()
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(4, 16)).square().mean().backward()
            optimizer.step()
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def patched(model):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer.step = types.MethodType(torch.optim.SGD.step.__wrapped__, optimizer)
    return optimizer


def test_a_step_that_was_replaced_is_found_out():
    model = make_model()
    balancer = Balancer(model, patched(model), LinearMap())
    with pytest.warns(UserWarning, match="not in force: SGD: the weights move, but not by") as caught:
        trained = train(model, balancer.optimizers[0], balancer)
    assert len(caught) == 1
    assert balancer.multipliers == {}
    assert balancer.remarks()[0].startswith("learning rates not in force: SGD: the weights move")
    assert all(value == 0.1 for value in balancer.effective().values())
    other = make_model()
    assert torch.equal(trained, train(other, patched(other)))


def test_a_step_that_was_replaced_is_found_out_in_a_loop_that_keeps_no_gradients():
    model = make_model()
    balancer = Balancer(model, patched(model), LinearMap())
    for _ in range(2):
        balancer.update()
        model(torch.ones(4, 16)).square().mean().backward()
        balancer.optimizers[0].step()
        model.zero_grad()
    with pytest.warns(UserWarning, match="not in force: SGD: the weights move, but not by"):
        balancer.update()


@pytest.mark.parametrize("analysed", [False, True])
def test_weights_that_are_loaded_before_the_first_step_have_not_moved(analysed):
    """As in a loop that resumes within ``with Balancer(...)``, or after a first analysis."""
    model, loaded = make_model(), {name: 2 * value for name, value in make_model().state_dict().items()}
    with Balancer(model, torch.optim.SGD(model.parameters(), lr=0.1), LinearMap()) as balancer:
        if analysed:
            balancer.update()
        model.load_state_dict(loaded)
        train(model, balancer.optimizers[0], balancer)
        assert (balancer.fault, balancer.scalings[0].proved) == (None, True)


def test_two_optimizers_of_the_same_parameters_may_take_turns():
    """What moves before the second one's first step was moved by the first."""
    model = make_model()
    first, second = torch.optim.AdamW(model.parameters(), lr=0.01), torch.optim.SGD(model[:2].parameters(), lr=0.1)
    with Balancer(model, [first, second], LinearMap()) as balancer:
        train(model, first, balancer)
        assert balancer.fault is None
        before, rate = model[0].weight.detach().clone(), balancer.multipliers["0"] * 0.1
        second.zero_grad()
        model(torch.ones(4, 16)).square().mean().backward()
        second.step()
        assert balancer.fault is None
        assert rate != 0.1
        torch.testing.assert_close(before - model[0].weight, rate * model[0].weight.grad)


def test_weights_that_are_not_finite_are_not_said_to_have_moved():
    """NaN is not equal to itself."""
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with torch.no_grad():
        for layer in model:
            layer.weight[0, 0] = torch.nan
    balancer = Balancer(model, optimizer, LinearMap())
    with pytest.warns(UserWarning, match="the training has diverged: go back to an earlier checkpoint") as warned:
        balancer.update()
    assert len(warned) == 1
    assert balancer.fault is None


def test_steps_that_use_the_rates_are_left_alone():
    model = make_model()
    with Balancer(model, torch.optim.SGD(model.parameters(), lr=0.1), LinearMap()) as balancer:
        train(model, balancer.optimizers[0], balancer)
        assert (balancer.fault, balancer.steps) == (None, 9)
        assert len(balancer.multipliers) == 3


def test_one_of_two_optimizers_may_fail():
    model = make_model()
    good = torch.optim.SGD(model[0].parameters(), lr=0.1)
    bad = torch.optim.SGD([*model[1].parameters(), *model[2].parameters()], lr=0.1)
    bad.step = types.MethodType(torch.optim.SGD.step.__wrapped__, bad)
    both = types.SimpleNamespace(zero_grad=model.zero_grad, step=lambda: (good.step(), bad.step()))
    with Balancer(model, [good, bad], LinearMap()) as balancer:
        with pytest.warns(UserWarning, match="not in force: SGD"):
            train(model, both, balancer, epochs=2)
        assert list(balancer.multipliers) == ["0"]
        assert balancer.factors()["1"] != balancer.factors()["1"]  # NaN: not in force


def test_an_optimizer_of_another_model_is_refused():
    with pytest.raises(ValueError, match=r"to train parameters of `model`, but got SGD with none of them"):
        Balancer(make_model(), torch.optim.SGD(make_model().parameters(), lr=0.1), LinearMap()).update()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": 3}, TypeError, "`model` to be a torch.nn.Module"),
        ({"optimizer": 0.1}, TypeError, "`optimizer` to be an optimizer"),
        ({"optimizer": []}, TypeError, "`optimizer` to be an optimizer"),
        ({"alpha_map": 2}, TypeError, r"`alpha_map` to be AlphaMap\(...\)"),
        ({"control": 2}, TypeError, r"`control` to be Control\(...\)"),
        ({"key": "momentum"}, ValueError, "`key` to be one of"),
        ({"workspace": 0}, ValueError, "`workspace` to be at least 1"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    model = make_model()
    good = {"model": model, "optimizer": torch.optim.SGD(model.parameters(), lr=0.1), "alpha_map": LinearMap()}
    with pytest.raises(error, match=message):
        Balancer(**{**good, **arguments})


def test_a_failed_analysis_is_said_once_and_leaves_the_multipliers():
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with Balancer(model, optimizer, LinearMap(), selection=Selection(include=("0", "1"))) as balancer:
        report, before = balancer.update(), balancer.multipliers
        model[1] = nn.Identity()
        with pytest.warns(UserWarning, match="failed and was skipped. PatternError: .*'1' matches none"):
            assert balancer.update() is report
        assert balancer.update() is report  # said once: warnings are errors here
        assert balancer.multipliers == before


def test_parameters_without_values_are_left_alone():
    """As of parts of a model that are kept elsewhere (Accelerate's offloading) and are not used in training."""
    model = make_model().append(nn.Linear(12, 12, device="meta"))
    optimizer = torch.optim.SGD([model[3].weight, *model[:3].parameters(), model[3].bias], lr=0.1)
    balancer = Balancer(model, optimizer, LinearMap())
    train(model[:3], optimizer, balancer)
    assert (balancer.fault, balancer.multipliers["3"]) == (None, 1.0)
    assert balancer.scalings[0].proved
    assert balancer.report["3"].reason == "the weights are on the meta device, without values"
