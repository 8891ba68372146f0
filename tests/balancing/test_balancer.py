"""The Balancer in a plain loop: no Trainer anywhere; the Lightning callback does the same over it."""

import copy
import math
import pickle
import subprocess
import sys

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms import FARMS, Control, LinearMap, TempBalance, analyze
from lightning_farms.analysis import LayerSpectrum, SpectralReport
from lightning_farms.balancing.balancer import Balancer

STEPS, EPOCHS = 4, 3


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(12, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 12))


def batches():
    generator = torch.Generator().manual_seed(1)
    return [(torch.randn(8, 12, generator=generator), torch.randn(8, 12, generator=generator)) for _ in range(STEPS)]


def refuse(kind, message):
    raise AssertionError(f"warned of {kind}: {message}")


def hooked(model, *optimizers, control=None, key="lr", warn=refuse):
    balancer = Balancer(model, optimizers, LinearMap(0.5, 1.5), control=control or Control(), key=key, warn=warn)
    balancer.hook(optimizers)
    return balancer


def train(model, optimizer, balancer, epochs=range(EPOCHS), analyse_first=True):
    if analyse_first:
        balancer.receive(analyze(model), 0)
    for epoch in epochs:
        for step, (x, y) in enumerate(batches()):
            optimizer.zero_grad()
            nn.functional.mse_loss(model(x), y).backward()
            optimizer.step()
            balancer.apply(epoch * STEPS + step + 1)
        balancer.receive(analyze(model), (epoch + 1) * STEPS)


class Module(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.net = make_model()

    def training_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self.net(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=0.05)


@pytest.mark.parametrize("control", [Control(), Control(ema_decay=0.5, ramp_steps=3, last_layer=False)])
@pytest.mark.filterwarnings("ignore:.*no logger to write to")
def test_a_plain_loop_equals_the_callback_bit_for_bit(control):
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    balancer = hooked(model, optimizer, control=control)
    train(model, optimizer, balancer)
    balancer.detach()

    module, callback = Module(), TempBalance(0.5, 1.5, FARMS(), control=control, summary=False)
    x, y = (torch.cat(parts) for parts in zip(*batches(), strict=True))
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=EPOCHS, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[callback],
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(x, y), batch_size=8))
    assert {f"net.{layer}": value for layer, value in balancer.multipliers.items()} == callback.multipliers
    assert len(set(balancer.multipliers.values())) > 1
    for ours, theirs in zip(model.parameters(), module.net.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_resumed_loop_equals_the_straight_one():
    control = Control(ema_decay=0.5, ramp_steps=6)
    results = []
    for stop in (None, 2):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        balancer = hooked(model, optimizer, control=control)
        train(model, optimizer, balancer, range(EPOCHS if stop is None else stop))
        if stop is not None:
            state = balancer.state_dict(), optimizer.state_dict()
            balancer.detach()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
            optimizer.load_state_dict(state[1])
            balancer = hooked(model, optimizer, control=control)
            balancer.load_state_dict(state[0])
            balancer.apply(stop * STEPS)
            train(model, optimizer, balancer, range(stop, EPOCHS), analyse_first=False)
        results.append((balancer.state_dict(), [p.detach().clone() for p in model.parameters()]))
    (straight, weights), (resumed, again) = results
    assert straight == resumed
    assert all(torch.equal(*pair) for pair in zip(weights, again, strict=True))


def report(**alphas):
    return SpectralReport([LayerSpectrum(name, "linear", (16, 16), alpha=alpha) for name, alpha in alphas.items()])


def test_multipliers_are_those_of_the_map_and_values_those_of_the_update():
    model = make_model()
    first = torch.optim.SGD(model[0].parameters(), lr=0.1)
    second = torch.optim.SGD([*model[2].parameters(), *model[4].parameters()], lr=0.2)
    balancer = hooked(model, first, second)
    history = balancer.receive(report(**{"0": 2.0, "2": 3.0, "4": 4.0}), step=0)
    assert balancer.multipliers == {"0": 0.5, "2": 1.0, "4": 1.5}
    assert balancer.factors() == balancer.multipliers
    assert balancer.values() == {"layer_lr/SGD": {"0": 0.05}, "layer_lr/SGD-1": {"2": 0.2, "4": pytest.approx(0.3)}}
    assert history == {"learning_rate": {"0": 0.05, "2": 0.2, "4": pytest.approx(0.3)}}


def test_a_layer_without_alpha_keeps_the_base_and_moves_no_other():
    model = make_model()
    balancer = hooked(model, torch.optim.SGD(model.parameters(), lr=0.1))
    balancer.receive(report(**{"0": 2.0, "2": math.nan, "4": 4.0}), step=0)
    assert balancer.multipliers == {"0": 0.5, "2": 1.0, "4": 1.5}


def test_weight_decay_and_compensation():
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, weight_decay=0.01)
    balancer = hooked(model, optimizer, key="weight_decay")
    balancer.receive(report(**{"0": 2.0, "2": 3.0, "4": 4.0}), step=0)
    assert balancer.values() == {"layer_wd/AdamW": {"0": 0.005, "2": 0.01, "4": pytest.approx(0.015)}}
    balancer.detach()
    balancer = hooked(model, optimizer, control=Control(compensate_weight_decay=True))
    balancer.receive(report(**{"0": 2.0, "2": 3.0, "4": 4.0}), step=0)
    rate, decay = balancer.scalings
    for layer in ("0", "2", "4"):
        assert rate.effective()[layer] * decay.effective()[layer] == pytest.approx(0.1 * 0.01)


def test_what_does_nothing_is_told_of():
    model, told = make_model(), []
    balancer = hooked(model, torch.optim.SGD(model.parameters(), lr=0.1), warn=lambda *what: told.append(what))
    balancer.receive(report(**{"0": 2.0, "2": 2.0, "4": 2.0}), step=0)
    assert [kind for kind, _ in told] == ["use"]


def test_new_parameters_are_noticed():
    model = make_model()
    optimizer = torch.optim.SGD(model[0].parameters(), lr=0.1)
    balancer = hooked(model, optimizer)
    assert balancer.fits([optimizer])
    optimizer.add_param_group({"params": list(model[2].parameters())})
    assert not balancer.fits([optimizer])


def pickled(everything):
    return pickle.loads(pickle.dumps(everything))


@pytest.mark.parametrize("duplicate", [copy.deepcopy, pickled])
def test_a_copy_hooks_the_copied_optimizer(duplicate):
    """PyTorch copies no hooks with an optimizer."""

    def step(model, optimizer):
        optimizer.zero_grad()
        model(batches()[0][0]).square().mean().backward()
        optimizer.step()

    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    with Balancer(model, optimizer, LinearMap(0.5, 1.5)) as balancer:
        balancer.update()
        step(model, optimizer)
        copied_model, copied_optimizer, copied = duplicate((model, optimizer, balancer))
        for _ in range(2):
            step(model, optimizer)
            step(copied_model, copied_optimizer)
        assert (copied.multipliers, copied.steps) == (balancer.multipliers, 3)
    assert all(map(torch.equal, model.parameters(), copied_model.parameters()))
    apart = duplicate((copied_model, copied_optimizer))
    step(copied_model, copied_optimizer)
    step(*apart)  # without its balancer: base rates
    assert not torch.equal(apart[0][0].weight, copied_model[0].weight)


def test_it_needs_no_lightning():
    code = (
        "import sys, lightning_farms.balancing.balancer; print([m for m in sys.modules if m.startswith('lightning.')])"
    )
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert ended.stdout.strip() == "[]"


def test_weights_that_are_not_finite_are_told_once():
    model = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32))
    balancer = Balancer(model, torch.optim.SGD(model.parameters(), lr=0.1), LinearMap())
    balancer.update()
    with torch.no_grad():
        model[1].weight[3, 4] = math.inf
    with pytest.warns(UserWarning, match="the weights of '1' are not all finite"):
        balancer.update()
    balancer.update()  # another warning would be an error here
    assert balancer.multipliers["1"] == 1
