"""Trainings that diverge in real Trainers: they stop with one message, and what was saved before stays as it was."""

import hashlib
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.plugins import MixedPrecision

from lightning_farms.callbacks import TBSigmoid
from lightning_farms.models._divergence import newest_checkpoint
from lightning_farms.models.operator_module import OperatorModule
from tests.callbacks.two_processes_launch import launch
from tests.models.small_operators import Fields, Linear, trainer

STEPS = 4  # of an epoch
WEIGHTS = "weights are no longer finite"
REFUSED = "No checkpoint was written, since the weights or the optimizer's averages are no longer finite"


class Poison(Callback):
    """Makes a weight or a gradient what it should not be, at one optimizer step."""

    def __init__(self, step, *, weight=None, gradient=None):
        self.step, self.weight, self.gradient = step, weight, gradient

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.weight is not None and trainer.global_step == self.step:
            pl_module.network.mix.weight.data[0, 0] = self.weight

    def on_after_backward(self, trainer, pl_module):
        if self.gradient is not None and trainer.global_step == self.step:
            pl_module.network.mix.weight.grad[0, 0] = self.gradient


class Kept(Callback):
    """What the folder held when the last epoch that went well was saved."""

    def __init__(self, folder):
        self.folder, self.files = Path(folder), {}

    def on_train_epoch_start(self, trainer, pl_module):
        self.files = contents(self.folder)


def contents(folder):
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in Path(folder).glob("*.ckpt")}


def finite(path):
    state = torch.load(path, weights_only=True)["state_dict"]
    return all(bool(torch.isfinite(value).all()) for value in state.values())


def fit(folder, *callbacks, saver=(), module=None, data=None, **settings):
    seed_everything(0)
    saver = ModelCheckpoint(folder, save_last=True, **dict(saver)) if isinstance(saver, (dict, tuple)) else saver
    run = trainer(folder, max_epochs=3, enable_checkpointing=True, callbacks=[*callbacks, saver], **settings)
    run.fit(module or OperatorModule(Linear(), lr=0.01), datamodule=data or Fields())
    return run, saver


SAVERS = {
    "last": {},
    "best and last": {"monitor": "val/l2re"},
    "on exception": {"monitor": "val/l2re", "save_on_exception": True},
    "after training": {"save_on_train_epoch_end": True, "monitor": "train/loss", "save_top_k": 2},
}


@pytest.mark.parametrize("saver", SAVERS.values(), ids=SAVERS)
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_in_mid_epoch(tmp_path, saver, value):
    kept = Kept(tmp_path)
    with pytest.raises(FloatingPointError, match=r"The loss is not finite \(epoch 1, batch 2, process 0\)") as stopped:
        fit(tmp_path, kept, Poison(STEPS + 2, weight=value), saver=saver)
    message = str(stopped.value)
    assert "Lower `lr` (now 0.01), clip the gradients more tightly (the Trainer's `gradient_clip_val`, now" in message
    assert f"The last good checkpoint is kept: {tmp_path}" in message
    named = message.split("kept: ")[1].split(". Lower")[0]
    assert finite(named)
    assert contents(tmp_path) == kept.files
    assert kept.files


@pytest.mark.parametrize("saver", SAVERS.values(), ids=SAVERS)
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"gradient_clip_val": 1.0},
        {"limit_val_batches": 0},
        {"accumulate_grad_batches": 2},
        {"val_check_interval": 0.5},
    ],
    ids=["plain", "clipped", "not validated", "accumulating", "validated twice"],
)
def test_weights_that_break_at_the_last_step_of_an_epoch(tmp_path, saver, settings):
    """A finite loss and an infinite gradient: without a look at the weights they would overwrite last.ckpt."""
    if "limit_val_batches" in settings:
        saver = {**saver, "monitor": "train/loss"} if "monitor" in saver else saver
    kept = Kept(tmp_path)
    last = 2 * STEPS // settings.get("accumulate_grad_batches", 1) - 1
    with pytest.raises(FloatingPointError, match=f"{WEIGHTS}|{REFUSED}") as stopped:
        fit(tmp_path, kept, Poison(last, gradient=float("inf")), saver=saver, **settings)
    assert "epoch 1, after" in str(stopped.value)
    assert finite(str(stopped.value).split("kept: ")[1].split(". Lower")[0])
    if "val_check_interval" not in settings:
        assert contents(tmp_path) == kept.files
    assert all(finite(path) for path in tmp_path.glob("*.ckpt"))


def test_a_checkpoint_in_mid_epoch_is_not_written(tmp_path):
    saver = {"every_n_train_steps": 1, "save_top_k": -1, "filename": "{step}"}
    with pytest.raises(FloatingPointError, match=REFUSED) as stopped:
        fit(tmp_path, Poison(2, gradient=float("inf")), saver=saver)
    assert contents(tmp_path).keys() == {"step=1.ckpt", "step=2.ckpt", "last.ckpt"}
    assert all(finite(path) for path in tmp_path.glob("*.ckpt"))
    assert f"{tmp_path}/" in str(stopped.value)
    assert "epoch 0, after 3 steps" in str(stopped.value)


def test_a_frozen_weight_is_noticed_too(tmp_path):
    """A gradient whose square overflows leaves Adam's second average infinite: the weight would never move again."""
    with pytest.raises(FloatingPointError, match=REFUSED):
        fit(tmp_path, Poison(1, gradient=1e30))
    assert contents(tmp_path) == {}


def test_no_checkpoint_before(tmp_path):
    with pytest.raises(FloatingPointError, match=r"epoch 0, batch 1, .*No checkpoint had been written\. Lower `lr`"):
        fit(tmp_path, Poison(1, weight=float("nan")))


@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks")
def test_the_checkpoint_started_from_is_named(tmp_path):
    run, _ = fit(tmp_path / "first")
    saved = tmp_path / "first" / "start.ckpt"
    run.save_checkpoint(saved)
    run = trainer(tmp_path / "second", max_epochs=4, callbacks=[Poison(3 * STEPS, weight=float("nan"))])
    with pytest.raises(FloatingPointError, match=rf"kept: {saved}"):
        run.fit(OperatorModule(Linear(), scheduler="none"), datamodule=Fields(), ckpt_path=saved)


def test_averaged_weights_are_looked_at_as_well(tmp_path):
    kept = Kept(tmp_path)
    with pytest.raises(FloatingPointError, match=WEIGHTS):
        fit(tmp_path, EMAWeightAveraging(decay=0.9), kept, Poison(2 * STEPS - 1, gradient=float("inf")))
    assert contents(tmp_path) == kept.files


class Broken(Fields):
    """The fourth batch of the training holds a NaN."""

    def train_dataloader(self):
        loader = super().train_dataloader()
        loader.dataset.tensors[0][-1, 0, 0, 0, 0] = float("nan")
        return loader


@pytest.mark.parametrize("rescue", [False, True])
def test_data_that_are_not_finite(tmp_path, rescue):
    """The weights are good: a checkpoint because of the exception may be written."""
    with pytest.raises(FloatingPointError, match=r"data hold values that are not finite \(epoch 0, batch 3"):
        fit(tmp_path, saver={"save_on_exception": rescue}, data=Broken())
    assert len(contents(tmp_path)) == (2 if rescue else 0)
    assert all(finite(path) for path in tmp_path.glob("*.ckpt"))


class Unstable(Linear):
    """Its rollouts blow up where it is told to, though training does not show it."""

    factor = 1.0

    def forward(self, x):
        prediction = super().forward(x)
        return prediction if self.training else prediction * self.factor


class Blow(Callback):
    def __init__(self, factor):
        self.factor, self.scores = factor, []

    def on_train_epoch_end(self, trainer, pl_module):
        self.scores.append(float(trainer.callback_metrics["val/l2re"]))
        pl_module.network.factor = self.factor


@pytest.mark.parametrize("factor", [float("nan"), float("inf"), 1e30, 1e6])
@pytest.mark.parametrize("top", [1, 2])
def test_a_rollout_that_blows_up_is_never_the_best(tmp_path, factor, top):
    blow = Blow(factor)
    module = OperatorModule(Unstable(), lr=0.01)
    saver = {"monitor": "val/l2re", "save_top_k": top, "filename": "{epoch}"}
    with pytest.warns(UserWarning, match=r"val/l2re is \S+ \(epoch 1\): rollouts blow up"):
        _, saver = fit(tmp_path, blow, saver=saver, module=module)
    assert blow.scores[0] < 2
    assert not any(score < 1e6 for score in blow.scores[1:])
    assert Path(saver.best_model_path).name == "epoch=0.ckpt"
    assert float(saver.best_model_score) == pytest.approx(blow.scores[0])
    assert Path(saver.best_model_path).exists()


class Overflow(Linear):
    """Loses its numbers at some forward passes of the training, as half precision does."""

    def __init__(self, steps):
        super().__init__()
        self.steps, self.passed = steps, 0

    def forward(self, x):
        prediction = super().forward(x)
        self.passed += self.training
        return prediction * float("nan") if self.training and self.passed in self.steps else prediction


def scaled():
    return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=4.0))]}


def test_a_gradient_scaler_may_skip_steps(tmp_path):
    module = OperatorModule(Overflow({2, 3, 7}), lr=0.01)
    run, _ = fit(tmp_path, module=module, **scaled())
    assert run.current_epoch == 3
    assert finite(tmp_path / "last.ckpt")


def test_a_gradient_scaler_that_only_skips_is_stopped(tmp_path):
    module = OperatorModule(Overflow(set(range(3, 100))), lr=0.01)
    with pytest.raises(FloatingPointError, match=r"epoch 2, batch 3, .*32-bit precision in place of 16-mixed"):
        fit(tmp_path, module=module, **scaled())
    assert finite(tmp_path / "last.ckpt")


@pytest.mark.filterwarnings("ignore:TBSigmoid")
@pytest.mark.parametrize("validated", [True, False])
def test_an_analysis_does_not_come_before_the_message(tmp_path, validated):
    """Without validation the analysis sees the weights first, and passes them on."""
    settings = {} if validated else {"limit_val_batches": 0}
    with pytest.raises(FloatingPointError, match=WEIGHTS):
        fit(tmp_path, TBSigmoid(summary=False), Poison(STEPS - 1, gradient=float("inf")), **settings)
    assert contents(tmp_path) == {}


def test_a_path_that_was_announced_and_never_written_is_not_named(tmp_path):
    run, saver = fit(tmp_path)
    saver.best_model_path = str(tmp_path / "never.ckpt")
    assert newest_checkpoint(run) == str(tmp_path / "last.ckpt")
    (tmp_path / "last.ckpt").unlink()
    saver._last_checkpoint_saved = ""
    assert newest_checkpoint(run) is None


@pytest.mark.parametrize("who", ["loss", "data", "gradient"])
def test_both_processes_stop_at_once(two_processes, who):
    """One of them meets the cause; a rank left waiting would raise another error, or hang until a timeout."""
    errors = [(two_processes / f"{who}{rank}.txt").read_text() for rank in (0, 1)]
    expected = {
        "loss": ("loss of another process is not finite (epoch 1, batch 1, ", "loss is not finite (epoch 1, batch 1, "),
        "data": ("data of another process hold values", "data hold values"),
        "gradient": (WEIGHTS, WEIGHTS),
    }[who]
    for error, words in zip(errors, expected, strict=True):
        assert error.startswith("FloatingPointError")
        assert words in error
    assert finite(two_processes / who / "last.ckpt")


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two_processes")
    launch("tests.models.two_processes_divergence", folder)
    return folder


def test_a_buffer_may_hold_infinities(tmp_path):
    module = OperatorModule(Linear(), lr=0.01)
    module.network.register_buffer("mask", torch.tensor(float("-inf")))
    fit(tmp_path, module=module)
    assert len(contents(tmp_path)) == 2


def test_averages_that_are_not_finite_are_not_gone_on_with(tmp_path):
    module = OperatorModule(Linear(), scheduler="none")
    run = trainer(tmp_path / "first", max_epochs=1)
    run.fit(module, datamodule=Fields())
    run.save_checkpoint(tmp_path / "good.ckpt")
    content = torch.load(tmp_path / "good.ckpt", weights_only=True)
    content["optimizer_states"][0]["state"][1]["exp_avg_sq"][0] = float("nan")
    torch.save(content, tmp_path / "bad.ckpt")
    named = (
        r"optimizer's averages of the checkpoint to be finite.* values: exp_avg_sq of network.mix.bias\. .* take an e"
    )
    with pytest.raises(ValueError, match=named):
        trainer(tmp_path / "second", max_epochs=2).fit(
            OperatorModule(Linear(), scheduler="none"), datamodule=Fields(), ckpt_path=tmp_path / "bad.ckpt"
        )
    trainer(tmp_path / "third").test(module, datamodule=Fields(), ckpt_path=tmp_path / "bad.ckpt", verbose=False)
