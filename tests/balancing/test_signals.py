"""What the multipliers follow, and their mean: signals, normalisation, layers that are unfrozen."""

import math

import pytest
import torch
from torch import nn

from lightning_farms import Balancer, Control, LinearMap, SigmoidMap, analyze
from lightning_farms.analysis import Diagnostics, LayerSpectrum, Selection, SpectralReport
from lightning_farms.functional import tb_linear_map


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 12))


def report(**alphas):
    return SpectralReport([LayerSpectrum(name, "linear", (16, 16), alpha=alpha) for name, alpha in alphas.items()])


def hooked(control, alpha_map=None, **options):
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    balancer = Balancer(model, optimizer, alpha_map or LinearMap(0.5, 1.5), control=control, **options)
    balancer.attach()
    return balancer


def step(balancer):
    balancer.optimizers[0].zero_grad()
    balancer.model(torch.randn(4, 12)).square().mean().backward()
    balancer.optimizers[0].step()


def test_change_is_alpha_by_that_of_the_first_analysis():
    balancer = hooked(Control(signal="change"))
    balancer.receive(report(**{"0": 2.0, "2": 3.0, "4": math.nan}), 0)  # no warning that all are equal
    assert balancer.multipliers == {"0": 1.0, "2": 1.0, "4": 1.0}
    balancer.receive(report(**{"0": 2.2, "2": 2.4, "4": 2.5}), 1)
    expected = tb_linear_map(torch.tensor([2.2 / 2.0, 2.4 / 3.0, 2.5 / 2.5], dtype=torch.float64), 0.5, 1.5)
    assert list(balancer.multipliers.values()) == pytest.approx(expected.tolist(), rel=1e-12)
    again = hooked(Control(signal="change"))
    again.load_state_dict(balancer.state_dict())
    again.receive(report(**{"0": 2.2, "2": 2.4, "4": 2.5}), 1)  # the first alphas are in the state
    assert again.multipliers == balancer.multipliers


def test_relative_alpha_asks_for_the_twin_and_uses_it():
    balancer = hooked(Control(signal="relative_alpha"))
    found = balancer.update()
    assert all(row.twin is not None for row in found)
    relative = torch.tensor([row.alpha / row.twin.alpha for row in found], dtype=torch.float64)
    assert list(balancer.multipliers.values()) == tb_linear_map(relative, 0.5, 1.5).tolist()
    assert found.alphas == analyze(balancer.model, diagnostics=Diagnostics(twin=True)).alphas


@pytest.mark.parametrize("normalize", [None, "mean", "geometric"])
def test_the_mean_is_over_the_trained_parameters_of_the_balanced_layers(normalize):
    control = Control(normalize=normalize, layers=Selection(exclude=("4",)))
    balancer = hooked(control, SigmoidMap())
    balancer.receive(report(**{"0": 2.0, "2": 3.0, "4": 4.0}), 0)
    sizes = {"0": 12 * 16 + 16, "2": 16 * 16 + 16, "4": 16 * 12 + 12}
    m = balancer.multipliers
    assert m["4"] == 1.0
    total = sizes["0"] + sizes["2"]
    mean = (sizes["0"] * m["0"] + sizes["2"] * m["2"]) / total
    logs = (sizes["0"] * math.log(m["0"]) + sizes["2"] * math.log(m["2"])) / total
    published = {"0": 10 ** (1 / (1 + math.exp(5)) - 0.5), "2": 10 ** (1 / (1 + math.exp(-5)) - 0.5)}
    assert m["2"] / m["0"] == pytest.approx(published["2"] / published["0"], rel=1e-12)
    if normalize == "mean":
        assert mean == pytest.approx(1.0, abs=1e-14)
    elif normalize == "geometric":
        assert logs == pytest.approx(0.0, abs=1e-14)
    else:
        assert (m["0"], m["2"]) == pytest.approx((published["0"], published["2"]), rel=1e-12)
    assert balancer.means() == {"learning_rate_multiplier_mean": pytest.approx(mean, rel=1e-14)}
    over_all = (total * mean + sizes["4"]) / (total + sizes["4"])
    assert balancer.remarks() == [
        f"mean lr factor, weighted by parameters: {mean:.3f} over the balanced layers, {over_all:.3f} over all that "
        "is trained"
    ]
    assert balancer.balanced() == {"0", "2"}
    assert balancer.scalars()["farms/learning_rate_multiplier_mean"] == pytest.approx(mean, rel=1e-14)


def test_without_a_balanced_layer_no_mean_over_them_is_printed():
    balancer = hooked(Control())
    with pytest.warns(UserWarning, match="all layers have the same learning rate"):
        balancer.receive(report(**{"0": math.nan, "2": math.nan, "4": math.nan}), 0)
    assert balancer.remarks() == ["mean lr factor, weighted by parameters: 1.000 over all that is trained"]


def test_bounds_hold_under_normalisation():
    balancer = hooked(Control(normalize="mean", max_multiplier=1.2, min_multiplier=0.5), SigmoidMap())
    balancer.receive(report(**{"0": 2.0, "2": 3.0, "4": 4.0}), 0)
    assert all(0.5 <= value <= 1.2 for value in balancer.multipliers.values())
    assert balancer.means()["learning_rate_multiplier_mean"] == pytest.approx(1.0, abs=1e-14)


@pytest.mark.parametrize("ramp_steps", [0, 4])
@pytest.mark.parametrize("resumed", [False, True])
def test_an_unfrozen_layer_has_the_multiplier_of_its_last_alpha_at_its_first_step(ramp_steps, resumed):
    balancer = hooked(Control(ramp_steps=ramp_steps))
    balancer.model[4].requires_grad_(False)
    balancer.receive(report(**{"0": 2.0, "2": 3.0, "4": 5.0}), 0)
    for _ in range(6):
        step(balancer)
    assert balancer.multipliers == {"0": 0.5, "2": 1.5}
    if resumed:
        state, weights = balancer.state_dict(), balancer.model.state_dict()
        balancer = hooked(Control(ramp_steps=ramp_steps))
        balancer.model.load_state_dict(weights)
        balancer.load_state_dict(state)
    balancer.model[4].requires_grad_(True)
    before = balancer.model[4].weight.detach().clone()
    step(balancer)
    if not ramp_steps:
        assert balancer.multipliers == pytest.approx({"0": 0.5, "2": 0.5 + 1 / 3, "4": 1.5})
    moved = before - balancer.model[4].weight
    torch.testing.assert_close(moved, 0.1 * 1.5 * balancer.model[4].weight.grad, rtol=1e-3, atol=1e-7)


def test_the_others_ramp_to_what_an_unfrozen_layer_makes_of_them_from_there_on():
    balancer = hooked(Control(ramp_steps=4))
    balancer.model[4].requires_grad_(False)
    balancer.receive(report(**{"0": 2.0, "2": 3.0, "4": 5.0}), 0)
    for _ in range(8):
        step(balancer)
    balancer.model[4].requires_grad_(True)
    for number in range(4):
        before = balancer.model[2].weight.detach().clone()
        step(balancer)
        multiplier = 1.5 - (number + 1) / 4 * (1.5 - 0.5 - 1 / 3)
        moved = before - balancer.model[2].weight
        torch.testing.assert_close(moved, 0.1 * multiplier * balancer.model[2].weight.grad, rtol=1e-3, atol=1e-7)


def test_a_layer_that_is_frozen_moves_no_other_until_the_next_analysis():
    balancer = hooked(Control())
    balancer.receive(report(**{"0": 2.0, "2": 3.0, "4": 5.0}), 0)
    step(balancer)
    balancer.model[4].requires_grad_(False)
    step(balancer)
    assert balancer.multipliers["2"] == pytest.approx(0.5 + 1 / 3)
    balancer.receive(report(**{"0": 2.0, "2": 3.0, "4": 5.0}), 2)
    assert balancer.multipliers == {"0": 0.5, "2": 1.5}


@pytest.mark.parametrize(("name", "value"), [("signal", "beta"), ("normalize", "median")])
def test_unknown_choices_are_refused(name, value):
    with pytest.raises(ValueError, match=f"`{name}` to be one of"):
        Control(**{name: value})
