"""OperatorModule on small networks whose rollout, loss and learning rates are known in closed form."""

import math

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_farms.models.operator_module import OperatorModule
from tests.models.small_operators import CHANNELS, GIVEN, Doubling, Fields, Linear, X, Y, trainer


class Bare(nn.Module):
    def forward(self, x):
        return x, x


class Complex(nn.Module):
    def forward(self, x):
        return torch.complex(x, x)


class Narrow(nn.Module):
    def forward(self, x):
        return x[..., :1]


no_trainer = pytest.mark.filterwarnings(r"ignore:You are trying to `self.log\(\)` but the `self.trainer` reference")


@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("bundle", [1, 2, 3])
@pytest.mark.parametrize("frames", [1, 4, 5])
def test_rollout_is_the_geometric_series(bundle, frames, named):
    module = OperatorModule(Doubling(bundle, named=named))
    x = torch.rand(2, X, Y, GIVEN, CHANNELS)
    expected = torch.cat([x[:, :, :, -1:] * 2.0 ** (k + 1) for k in range(frames)], dim=3)
    torch.testing.assert_close(module.rollout(x, frames), expected)


def test_rollout_feeds_the_newest_frames():
    """A network that sums its input: the expectation is the recurrence written out by hand."""

    class Sum(nn.Module):
        def forward(self, x):
            return x.sum(dim=3, keepdim=True)

    x = torch.tensor([1.0, 2.0, 3.0]).reshape(1, 1, 1, 3, 1)
    values = OperatorModule(Sum()).rollout(x, 4).flatten().tolist()
    assert values == [6.0, 2 + 3 + 6.0, 3 + 6 + 11.0, 6 + 11 + 20.0]


@no_trainer
def test_training_step_is_the_relative_error_of_the_next_frames():
    module = OperatorModule(Doubling(2))
    x = torch.rand(2, X, Y, GIVEN, CHANNELS)
    last = x[:, :, :, -1:]
    y = torch.cat((last * 2, last * 4), dim=3) * 0.8
    assert float(module.training_step((x, y), 0).detach()) == pytest.approx(0.25, rel=1e-5)


def test_validation_and_test_log_the_rollouts_error(tmp_path):
    """Predicted: last * 2^k, true: last * 0.9^k; both samples and channels scale alike, so the error is known."""
    module = OperatorModule(Doubling(2))
    k = torch.arange(1, 6, dtype=torch.float64)
    l2re = float((2**k - 0.9**k).norm() / (0.9**k).norm())
    nrmse = float(((2**k - 0.9**k) / 0.9**k).mean())
    run = trainer(tmp_path)
    (validated,) = run.validate(module, datamodule=Fields(), verbose=False)
    (tested,) = run.test(module, datamodule=Fields(), verbose=False)
    assert validated["val/l2re"] == pytest.approx(l2re, rel=1e-5)
    assert validated["val/nrmse"] == pytest.approx(nrmse, rel=1e-5)
    assert tested["test/l2re"] == pytest.approx(l2re, rel=1e-5)
    assert tested["test/nrmse"] == pytest.approx(nrmse, rel=1e-5)


def test_predict_returns_the_rollouts(tmp_path):
    module = OperatorModule(Linear())
    predictions = trainer(tmp_path).predict(module, datamodule=Fields())
    assert [tuple(p.shape) for p in predictions] == [(2, X, Y, 5, CHANNELS), (1, X, Y, 5, CHANNELS)]
    x, _ = next(iter(Fields().predict_dataloader()))
    with torch.no_grad():
        torch.testing.assert_close(predictions[0], module.rollout(x, 5))


def test_learns(tmp_path):
    seed_everything(0)
    module = OperatorModule(Linear(), lr=0.02)
    run = trainer(tmp_path, max_epochs=40)
    (before,) = run.validate(module, datamodule=Fields(), verbose=False)
    run.fit(module, datamodule=Fields())
    assert run.callback_metrics["val/l2re"] < 0.2 * before["val/l2re"]
    assert math.isfinite(run.callback_metrics["train/loss"])


class Rates(Callback):
    def __init__(self):
        self.rates, self.betas = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.betas.append(optimizer.param_groups[0]["betas"])


def one_cycle(step, total, warmup, lr):
    """The published shape, written independently: cosine from lr/1e4 to lr to lr/1e8."""
    turn = warmup * total - 1
    low, high, t = (lr / 1e4, lr, step / turn) if step <= turn else (lr, lr / 1e8, (step - turn) / (total - 1 - turn))
    return high + (low - high) * (1 + math.cos(math.pi * t)) / 2


@pytest.mark.parametrize(("accumulate", "steps"), [(1, 12), (2, 6)])
@pytest.mark.parametrize("scheduler", ["onecycle", "cosine", "none"])
def test_schedule_spans_the_optimizer_steps(tmp_path, scheduler, accumulate, steps):
    rates = Rates()
    run = trainer(tmp_path, max_epochs=3, accumulate_grad_batches=accumulate, callbacks=[rates])
    run.fit(OperatorModule(Linear(), lr=0.01, scheduler=scheduler, warmup_fraction=0.5), datamodule=Fields())
    expected = {
        "onecycle": [one_cycle(i, steps, 0.5, 0.01) for i in range(steps)],
        "cosine": [0.01 * (1 + math.cos(math.pi * i / steps)) / 2 for i in range(steps)],
        "none": [0.01] * steps,
    }[scheduler]
    assert rates.rates == pytest.approx(expected, rel=1e-6)
    assert set(rates.betas) == {(0.9, 0.9)}


@pytest.mark.parametrize("max_steps", [1, 2, 5, 10])
def test_shortest_schedules_do_not_divide_by_zero(tmp_path, max_steps):
    """warmup_fraction * steps = 1 is where PyTorch's OneCycleLR alone raises ZeroDivisionError (5 steps at 0.2)."""
    rates = Rates()
    run = trainer(tmp_path, max_epochs=None, max_steps=max_steps, callbacks=[rates])
    run.fit(OperatorModule(Linear()), datamodule=Fields())
    assert len(rates.rates) == max_steps
    assert all(0 < rate <= 5e-4 for rate in rates.rates)


def test_cycle_momentum_swings_the_first_beta(tmp_path):
    rates = Rates()
    run = trainer(tmp_path, max_epochs=3, callbacks=[rates])
    run.fit(OperatorModule(Linear(), cycle_momentum=True), datamodule=Fields())
    firsts = [first for first, _ in rates.betas]
    assert firsts[0] == pytest.approx(0.95)
    assert min(firsts) < 0.87
    assert firsts[-1] == pytest.approx(0.95)


@pytest.mark.filterwarnings("ignore:.*max_epochs.*was not set")
def test_unlimited_training_needs_scheduler_none(tmp_path):
    with pytest.raises(MisconfigurationException, match="max_epochs"):
        trainer(tmp_path, max_epochs=-1).fit(OperatorModule(Linear()), datamodule=Fields())
    run = trainer(tmp_path, max_epochs=-1, limit_train_batches=1, max_steps=2)
    run.fit(OperatorModule(Linear(), scheduler="none"), datamodule=Fields())
    assert run.global_step == 2


def test_a_network_of_which_nothing_can_be_trained(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"to have parameters to train .* but all [1-9]\d* are frozen"):
        trainer(tmp_path).fit(OperatorModule(Linear().requires_grad_(False)), datamodule=Fields())


@pytest.mark.parametrize("scheduler", ["onecycle", "cosine", "none"])
def test_resuming_beyond_the_schedule_is_refused(tmp_path, scheduler):
    """A one-cycle schedule would raise at the step after its last; a cosine would silently rise again."""

    def fit(epochs, checkpoint=None):
        run = trainer(tmp_path, max_epochs=epochs)
        run.fit(OperatorModule(Linear(), scheduler=scheduler), datamodule=Fields(), ckpt_path=checkpoint)
        return run

    fit(2).save_checkpoint(tmp_path / "done.ckpt")
    if scheduler == "none":
        assert fit(3, tmp_path / "done.ckpt").global_step == 12
        return
    found = rf"`{scheduler}` to span the training's 12 steps, but the checkpoint's ends after 8"
    with pytest.raises(MisconfigurationException, match=found):
        fit(3, tmp_path / "done.ckpt")


def test_class_head_is_left_alone(tmp_path):
    """A head that the loss does not reach would stop DDP at the second step, waiting for its gradients."""
    network = Linear()
    network.cls_head = nn.Linear(2, 2)
    before = network.cls_head.weight.clone()
    module = OperatorModule(network, lr=0.1)
    trainer(tmp_path).fit(module, datamodule=Fields())
    assert torch.equal(network.cls_head.weight, before)
    assert not network.cls_head.weight.requires_grad
    assert network.mix.weight.requires_grad


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_optimizer(name, kind):
    module = OperatorModule(Linear(), optimizer=name, scheduler="none", lr=0.3, betas=(0.8, 0.7), weight_decay=0.1)
    optimizer = module.configure_optimizers()
    assert type(optimizer) is kind
    assert {k: optimizer.defaults[k] for k in ("lr", "betas", "weight_decay")} == {
        "lr": 0.3,
        "betas": (0.8, 0.7),
        "weight_decay": 0.1,
    }


def test_bf16_with_accumulation_trains(tmp_path):
    module = OperatorModule(Linear(), lr=0.02)
    run = trainer(tmp_path, max_epochs=20, precision="bf16-mixed", accumulate_grad_batches=2, gradient_clip_val=1e4)
    run.fit(module, datamodule=Fields())
    assert run.callback_metrics["val/l2re"] < 0.3
    x, _ = next(iter(Fields().val_dataloader()))
    with torch.autocast("cpu", torch.bfloat16):
        assert module.rollout(x, 2).dtype == torch.float32


def test_resumed_training_equals_the_uninterrupted_one(tmp_path):
    def weights(epochs, checkpoint=None):
        seed_everything(1)
        module = OperatorModule(Linear(), lr=0.02)
        run = trainer(tmp_path, max_epochs=4, callbacks=[StopAfter(epochs)])
        run.fit(module, datamodule=Fields(), ckpt_path=checkpoint)
        run.save_checkpoint(tmp_path / f"{epochs}.ckpt")
        return {name: value.clone() for name, value in module.state_dict().items()}

    straight = weights(4)
    halfway = weights(2)
    assert not torch.equal(straight["network.mix.weight"], halfway["network.mix.weight"])
    resumed = weights(4, tmp_path / "2.ckpt")
    for name, weight in straight.items():
        assert torch.equal(weight, resumed[name]), name


class StopAfter(Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def test_load_from_checkpoint_by_hand(tmp_path):
    module = OperatorModule(Linear(), lr=0.02, noise=0.1)
    run = trainer(tmp_path)
    run.fit(module, datamodule=Fields())
    path = tmp_path / "module.ckpt"
    run.save_checkpoint(path)
    torch.load(path, weights_only=True)
    loaded = OperatorModule.load_from_checkpoint(path, network=Linear())
    assert (loaded.lr, loaded.noise, loaded.betas) == (0.02, 0.1, (0.9, 0.9))
    assert "network" not in loaded.hparams
    torch.testing.assert_close(loaded.network.state_dict(), module.network.state_dict(), rtol=0, atol=0)


def test_checkpoint_of_other_shapes_names_them(tmp_path):
    run = trainer(tmp_path)
    run.fit(OperatorModule(Linear()), datamodule=Fields())
    run.save_checkpoint(tmp_path / "module.ckpt")
    other, found = (
        OperatorModule(Linear(in_timesteps=5)),
        r"1 differ \(network.mix.weight: \(2, 6\) in the file, \(2, 10\) in",
    )
    with pytest.raises(ValueError, match=found):
        trainer(tmp_path).validate(other, datamodule=Fields(), ckpt_path=tmp_path / "module.ckpt")
    with pytest.raises(ValueError, match=found):
        OperatorModule.load_from_checkpoint(tmp_path / "module.ckpt", network=Linear(in_timesteps=5))


@pytest.mark.parametrize(
    ("shape", "match"),
    [
        ((1, X, Y, GIVEN), r"of shape \(batch, X, Y, frames, channels\)"),
        ((1, 8, Y, GIVEN, CHANNELS), r"4 points along X, the network's `img_size`, but got 8"),
        ((1, X, 8, GIVEN, CHANNELS), r"4 points along Y, the network's `img_size`, but got 8"),
        ((1, X, Y, 10, CHANNELS), r"3 frames, the network's `in_timesteps`, but got 10"),
        ((1, X, Y, GIVEN, 4), r"2 channels, the network's `in_channels`, but got 4"),
    ],
)
def test_input_that_does_not_fit_the_network(shape, match):
    with pytest.raises(ValueError, match=match):
        OperatorModule(Linear())(torch.ones(shape))


def test_target_or_output_that_does_not_fit():
    x = torch.ones(1, X, Y, GIVEN, CHANNELS)
    with pytest.raises(ValueError, match=r"prediction's samples, points and channels, as in \(1, 4, 4, 1, 2\)"):
        OperatorModule(Linear()).training_step((x, torch.ones(1, X, 8, 1, CHANNELS)), 0)
    with pytest.raises(TypeError, match=r"named tuple with a field `prediction`, but got tuple"):
        OperatorModule(Bare())(x)
    with pytest.raises(TypeError, match=r"to return a float tensor .*, but got torch.complex64"):
        OperatorModule(Complex()).rollout(x, 1)  # of which only the real part would be evaluated
    with pytest.raises(ValueError, match=r"so that it can be fed back, but got \(1, 4, 4, 3, 1\)"):
        OperatorModule(Narrow()).rollout(x, 2)
    with pytest.raises(ValueError, match=r"`frames` to be at least 1, but got 0"):
        OperatorModule(Linear()).rollout(x, 0)


def test_a_network_that_predicts_no_frame_is_refused_and_not_asked_for_ever():
    class Empty(Linear):
        def forward(self, x):
            return x[:, :, :, :0]

    x = torch.ones(1, X, Y, GIVEN, CHANNELS)
    with pytest.raises(ValueError, match=r"at least one frame, so that it can be fed back, but got \(1, 4, 4, 0, 2\)"):
        OperatorModule(Empty()).rollout(x, 2)
    with pytest.raises(ValueError, match="a multiple of the 0 frames that the network predicts"):
        OperatorModule(Empty()).training_step((x, x), 0)


@pytest.mark.parametrize(
    ("settings", "match"),
    [
        ({"lr": 0.0}, r"`lr` to be positive"),
        ({"lr": float("nan")}, r"`lr` to be positive"),
        ({"betas": (0.9, 1.0)}, r"`betas` to be two numbers in \[0, 1\)"),
        ({"weight_decay": -1.0}, r"`weight_decay` to be at least 0"),
        ({"optimizer": "sgd"}, r"`optimizer` to be \"adam\" or \"adamw\", but got 'sgd'"),
        ({"scheduler": "step"}, r"`scheduler` to be"),
        ({"warmup_fraction": 1.0}, r"`warmup_fraction` to be in \[0, 1\), but got 1.0"),
        ({"noise": -0.1}, r"`noise` to be at least 0"),
        ({"noise_seed": -1}, r"`noise_seed` to be at least 0, but got -1"),
    ],
)
def test_bad_settings(settings, match):
    with pytest.raises(ValueError, match=match):
        OperatorModule(Linear(), **settings)


def test_network_must_be_a_module():
    with pytest.raises(TypeError, match=r"`network` to be a torch.nn.Module, but got str"):
        OperatorModule("DPOT")


@pytest.mark.parametrize("scheduler", ["onecycle", "cosine", "none"])
def test_a_fit_without_any_training_batch_ends_quietly(tmp_path, scheduler):
    module = OperatorModule(Linear(), scheduler=scheduler)
    trainer(tmp_path, limit_train_batches=0).fit(module, datamodule=Fields())
    assert module.trainer.global_step == 0
