"""Stopped and resumed is as if never stopped, bit for bit, wherever that is so for Lightning without us."""

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import OneCycleLR
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms import Control, SpectralMonitor, StepMap, TBSigmoid, TempBalance, WeightDecayBalance
from lightning_farms import LayerwiseLearningRate as Rate

STEADY = Control(ema_decay=0.5, ramp_steps=5, clip_quantile=0.1, max_multiplier=1.4)
CALLBACKS = {
    "none": list,
    "each epoch": lambda: [TempBalance(summary=False)],
    "every second epoch, ramped": lambda: [TBSigmoid(every_n_epochs=2, control=STEADY, summary=False)],
    "every third step": lambda: [Rate(StepMap(), every_n_steps=3, summary=False), SpectralMonitor(summary=False)],
    "every third step, ramped": lambda: [TempBalance(0.3, 1.7, every_n_steps=3, control=STEADY, summary=False)],
    "from the second epoch on": lambda: [TempBalance(start_epoch=2, control=STEADY, summary=False)],
    "rate and decay": lambda: [
        WeightDecayBalance(every_n_steps=5, control=STEADY, summary=False),
        TBSigmoid(summary=False),
    ],
    "compensated": lambda: [TempBalance(control=Control(compensate_weight_decay=True), summary=False)],
}
SAVED = {  # options of ModelCheckpoint and of the Trainer, the step at which the saved run stood
    "end of the epoch": ({"every_n_epochs": 1}, {}, 8),
    "mid-epoch": ({"every_n_train_steps": 6}, {}, 6),
    "last step of the epoch": ({"every_n_train_steps": 8}, {}, 8),
    "validation in mid-epoch": ({"every_n_epochs": 1}, {"val_check_interval": 0.5}, 6),
    "validation every second epoch": ({"every_n_epochs": 1}, {"check_val_every_n_epoch": 2}, 8),
    "accumulating": ({"every_n_epochs": 1}, {"accumulate_grad_batches": 2}, 4),
}


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, weight_decay=0.1)


def onecycle(optimizer):
    return OneCycleLR(optimizer, 0.05, total_steps=16)


@pytest.fixture
def equal_batches():
    """A loader that Lightning resumes exactly in mid-epoch: it replays batches from the first, all of them equal."""
    generator = torch.Generator().manual_seed(2)
    x, y = torch.randn(4, 3, 6, 6, generator=generator), torch.randn(4, 12, generator=generator)
    return DataLoader(TensorDataset(x.repeat(4, 1, 1, 1), y.repeat(4, 1)), batch_size=4)


class Seen(pl.Callback):
    """Steps at which something was saved or resumed."""

    def on_train_start(self, trainer, pl_module):
        self.started_at = trainer.global_step


@pytest.fixture
def fit(small_net, equal_batches, make_trainer, tmp_path):
    def run(callbacks, ckpt_path=None, save=None, **settings):
        model = small_net(make_optimizer=adamw, make_scheduler=onecycle)
        model.validation_step = lambda batch, batch_idx: None
        extra = [ModelCheckpoint(tmp_path, filename="{step}", save_top_k=-1, **save)] if save else []
        seen = Seen()
        trainer = make_trainer(
            [*callbacks, seen, *extra],
            **{"max_epochs": 4, "enable_checkpointing": bool(save), "num_sanity_val_steps": 0, **settings},
        )
        trainer.fit(model, equal_batches, equal_batches, ckpt_path=ckpt_path)
        return model, trainer, seen

    return run


def everything(model, trainer, callbacks):
    """All that training leaves behind, in comparable form."""
    optimizer = trainer.optimizers[0].state_dict()
    state = {i: {k: torch.as_tensor(v).tolist() for k, v in s.items()} for i, s in optimizer["state"].items()}
    weights = {name: value.tolist() for name, value in model.state_dict().items()}
    return weights, state, optimizer["param_groups"], [repr(callback.state_dict()) for callback in callbacks]


@pytest.fixture(scope="module")
def known():
    """What straight runs left behind, by callbacks and settings."""
    return {}


@pytest.fixture
def straight(fit, known):
    """What a run that is never stopped leaves behind; each is made once."""

    def run(which, **settings):
        key = which, *sorted(settings.items())
        if key not in known:
            callbacks = CALLBACKS[which]()
            model, trainer, _ = fit(callbacks, **settings)
            known[key] = everything(model, trainer, callbacks)
        return known[key]

    return run


@pytest.mark.filterwarnings("ignore:You're resuming from a checkpoint that ended before the epoch ended")
@pytest.mark.parametrize("when", SAVED)
@pytest.mark.parametrize("which", CALLBACKS)
def test_resumed_is_as_never_stopped(which, when, fit, straight, tmp_path):
    save, settings, step = SAVED[when]
    expected = straight(which, **settings)
    fit(CALLBACKS[which](), save=save, **{**settings, "max_epochs": 2})
    resumed = CALLBACKS[which]()
    model, trainer, seen = fit(resumed, ckpt_path=tmp_path / f"step={step}.ckpt", save=save, **settings)
    assert seen.started_at == step
    assert everything(model, trainer, resumed) == expected
    for callback in resumed:
        assert len(callback.history.steps) == len(
            set(zip(callback.history.epochs, callback.history.steps, strict=True))
        )


def test_multipliers_make_a_difference_in_every_case(straight):
    """Else the comparisons above would say nothing."""
    assert len({repr(straight(which)[0]) for which in CALLBACKS}) == len(CALLBACKS)


@pytest.mark.parametrize("which", CALLBACKS)
def test_checkpoints_hold_base_values_and_plain_types(which, fit, tmp_path):
    fit(CALLBACKS[which](), save={"every_n_train_steps": 1}, max_epochs=2)
    _, trainer, _ = fit([], max_epochs=1)
    (group,) = trainer.optimizers[0].param_groups
    for step in range(1, 9):
        checkpoint = torch.load(tmp_path / f"step={step}.ckpt", weights_only=True)
        (saved,) = checkpoint["optimizer_states"][0]["param_groups"]
        assert len(saved["params"]) == len(group["params"])
        assert saved["weight_decay"] == 0.1
        assert saved["lr"] == checkpoint["lr_schedulers"][0]["_last_lr"][0]


@pytest.mark.parametrize("kind", [TempBalance, WeightDecayBalance])
def test_a_state_of_version_1_is_read(kind, fit):
    callback = kind(summary=False)
    history = {"epochs": [0, 1], "quantities": {"alpha": {"conv": [2.0, 3.0]}}}
    callback.load_state_dict({"version": 1, "analysed": 1, "history": history, "multipliers": {"conv": 1.5}})
    assert callback.history.steps == [None, None]
    assert callback.state_dict()["multipliers"] == {"conv": 1.5}  # kept until a fit takes it over, see test_balancer


def test_options_of_the_control_may_change_between_a_run_and_its_resumption(fit, tmp_path):
    fit([TempBalance(summary=False)], save={"every_n_epochs": 1}, max_epochs=2)
    callback = TempBalance(0.9, 1.1, control=STEADY, every_n_steps=2, summary=False)
    fit([callback], ckpt_path=tmp_path / "step=8.ckpt", save={"every_n_epochs": 1})
    assert callback.history.steps == [0, 4, 8, 10, 12, 14, 16]
    assert all(0.9 <= multiplier <= 1.1 for multiplier in callback.state_dict()["ramp"]["target"].values())
