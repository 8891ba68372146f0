"""The training loss: rollouts with their gradient, pushforward, and noise that a resumed run draws again."""

import math

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms.models.dpot.network import DPOT
from lightning_farms.models.operator_module import OperatorModule
from tests.models.small_operators import CHANNELS, GIVEN, Doubling, Fields, Linear, X, snapshot, trainer

no_trainer = pytest.mark.filterwarnings(r"ignore:You are trying to `self.log\(\)` but the `self.trainer` reference")


def decaying(samples=2, frames=1, points=X):
    start = 1 + torch.rand(samples, points, points, 1, CHANNELS, generator=torch.Generator().manual_seed(0))
    u = start * 0.9 ** torch.arange(GIVEN + frames).reshape(1, 1, 1, -1, 1)
    return u[:, :, :, :GIVEN], u[:, :, :, GIVEN:]


def error(powers, truth):
    """Relative L2 error where all points and channels grow alike."""
    return (powers - truth).norm() / truth.norm()


@no_trainer
@pytest.mark.parametrize("pushforward", [False, True])
@pytest.mark.parametrize(("bundle", "predictions"), [(1, 2), (1, 4), (2, 2), (2, 3)])
def test_loss_and_gradient_of_a_rollout_in_closed_form(bundle, predictions, pushforward):
    """The network multiplies by f, so that frame n is last * f^n; a fed-back frame is a constant in pushforward."""
    module = OperatorModule(Doubling(bundle), pushforward=pushforward)
    x, y = decaying(frames=bundle * predictions)
    loss = module.training_step((x, y), 0)
    loss.backward()

    f = torch.tensor(2.0, dtype=torch.float64, requires_grad=True)
    n = torch.arange(1, bundle + 1, dtype=torch.float64)
    errors = []
    for k in range(predictions):
        start = 2.0 ** (k * bundle) if pushforward else f ** (k * bundle)
        errors.append(error(start * f**n, 0.9 ** (n + k * bundle)))
    expected = (errors[0] + errors[-1]) / 2 if pushforward else sum(errors) / predictions
    expected.backward()
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert float(module.network.factor.grad) == pytest.approx(float(f.grad), rel=1e-5)


@no_trainer
@pytest.mark.parametrize("pushforward", [False, True])
def test_gradient_survives_the_cache_of_autocast(pushforward):
    """Autocast keeps the cast weights; were they first cast without gradient, there would be none."""

    def gradient(cache):
        seed_everything(0)
        module = OperatorModule(Linear(), pushforward=pushforward)
        with torch.autocast("cpu", torch.bfloat16, cache_enabled=cache):
            loss = module.training_step(decaying(frames=3), 0)
        loss.backward()
        return module.network.mix.weight.grad

    torch.testing.assert_close(gradient(cache=True), gradient(cache=False), rtol=0.02, atol=0)


@pytest.mark.parametrize("pushforward", [False, True])
def test_rollout_training_learns(tmp_path, pushforward):
    seed_everything(0)
    module, run = OperatorModule(Linear(), lr=0.03, pushforward=pushforward), trainer(tmp_path, max_epochs=20)
    (before,) = run.validate(module, datamodule=Fields(), verbose=False)
    run.fit(module, datamodule=Fields(train_frames=4))
    assert run.callback_metrics["val/l2re"] < 0.25 * before["val/l2re"]


def test_frames_that_are_no_whole_predictions_are_refused():
    with pytest.raises(ValueError, match=r"multiple of the 2 frames.*but got 3\. Make `out_timesteps`.*equal"):
        OperatorModule(Doubling(2)).training_step(decaying(frames=3), 0)
    with pytest.raises(ValueError, match=r"multiple of the 2 frames.*but got 1"):
        OperatorModule(Doubling(2)).training_step(decaying(frames=1), 0)
    with pytest.raises(
        ValueError, match=r"`pushforward` to span at least two predictions, but got one\. Set.*`autoreg"
    ):
        OperatorModule(Doubling(2), pushforward=True).training_step(decaying(frames=2), 0)


@no_trainer
def test_noise_is_added_to_the_input_of_every_prediction_and_stays():
    """Frames that remain in the input have been made noisy twice by the second prediction: sqrt(2) times the noise."""

    class Recorder(nn.Module):
        seen = ()

        def forward(self, x):
            self.seen += (x,)
            return x[:, :, :, -1:]

    network = Recorder()
    x, y = torch.ones(1, 64, 64, GIVEN, CHANNELS), torch.ones(1, 64, 64, 2, CHANNELS)
    OperatorModule(network, noise=0.1).training_step((x, y), 0)
    first, second = network.seen
    assert float((first - 1).std()) == pytest.approx(0.1, rel=0.02)
    assert float((second[:, :, :, :-1] - 1).std()) == pytest.approx(0.1 * math.sqrt(2), rel=0.02)
    assert float((second[:, :, :, -1:] - first[:, :, :, -1:]).std()) == pytest.approx(0.1, rel=0.02)


def test_noise_differs_between_batches_epochs_and_processes(tmp_path, monkeypatch):
    class Recorder(Linear):
        seen = ()

        def forward(self, x):
            self.seen += (x.clone(),) if self.training else ()
            return super().forward(x)

    inputs = []
    for rank in (0, 1):
        monkeypatch.setattr(OperatorModule, "global_rank", rank)
        network = Recorder()
        trainer(tmp_path).fit(OperatorModule(network, noise=0.1), datamodule=Fields(equal=True))
        inputs += network.seen
    assert len(inputs) == 2 * 2 * 4
    assert len({tuple(x.flatten().tolist()) for x in inputs}) == len(inputs)


class StopAtStep(Callback):
    def __init__(self, step):
        self.step = step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        trainer.should_stop = trainer.global_step >= self.step


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize(("accumulate", "step"), [(1, 6), (2, 3), (2, 4)], ids=["mid-epoch", "accumulating", "end"])
def test_a_resumed_run_draws_the_noise_of_a_straight_one(tmp_path, accumulate, step):
    """All batches are equal, so that only the noise tells them apart; the global generator stands elsewhere."""

    def fit(noise=0.1, checkpoint=None, stop=math.inf, seed=0, global_seed=0):
        seed_everything(1)
        module = OperatorModule(Linear(), lr=0.02, noise=noise, noise_seed=seed)
        torch.manual_seed(global_seed)
        saver = ModelCheckpoint(tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
        run = trainer(
            tmp_path,
            max_epochs=3,
            accumulate_grad_batches=accumulate,
            enable_checkpointing=True,
            callbacks=[StopAtStep(stop), saver],
        )
        run.fit(module, datamodule=Fields(equal=True, train_frames=2), ckpt_path=checkpoint)
        return snapshot(module)

    fit(stop=step)
    resumed = fit(checkpoint=tmp_path / f"step={step}.ckpt", global_seed=5)
    straight = fit(global_seed=7)
    assert all(torch.equal(resumed[name], value) for name, value in straight.items())
    assert not any(torch.equal(fit(noise=0.0)[name], value) for name, value in straight.items())
    assert not any(torch.equal(fit(seed=1)[name], value) for name, value in straight.items())


@pytest.mark.filterwarnings("ignore:.torch.jit.script_method. is deprecated:DeprecationWarning")  # inductor's own use
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_a_compiled_network_trains_alike(tmp_path, monkeypatch, backend):
    compiled = []

    def compile_with_backend(module):
        compiled.append(module)
        module._compiled_call_impl = torch.compile(module._call_impl, backend=backend)

    monkeypatch.setattr(nn.Module, "compile", compile_with_backend)
    sizes = {"img_size": 16, "patch_size": 4, "in_timesteps": 4, "embed_dim": 16, "depth": 1, "n_blocks": 2}
    x = torch.rand(5, 16, 16, 4, 4, generator=torch.Generator().manual_seed(0))
    batches = DataLoader(TensorDataset(x, 0.9 * x[:, :, :, -1:]), batch_size=2)  # the last batch is smaller
    states = []
    for compile_network in (False, True):
        seed_everything(0)
        module = OperatorModule(DPOT(**sizes), lr=1e-3, compile_network=compile_network)
        trainer(tmp_path, max_epochs=2).fit(module, batches, batches)
        states.append(module.state_dict())
        assert compiled == ([module.network] if compile_network else [])
    assert states[0].keys() == states[1].keys()
    torch.testing.assert_close(states[0], states[1], rtol=1e-4, atol=1e-5)
