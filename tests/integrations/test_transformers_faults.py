"""Trainings of transformers that break off, and faults of our own in them, with a model for many short runs."""

import json
import warnings

import pytest
import torch
import transformers
from transformers import TrainerCallback

from lightning_farms import Control, LinearMap, SigmoidMap
from lightning_farms.integrations.transformers import SpectralBalanceCallback
from tests.callbacks.injection import Fault, counted, fault_in, functions

FIRST_STEPS = "Balancer._after_step", "Balancer._join"  # called by the optimizer's step; what they do is contained
CONTAINING = "contained_fault", "SpectralBalanceCallback.state", "SpectralBalanceCallback._key"


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(12, 16), torch.nn.Tanh(), torch.nn.Linear(16, 10))

    def forward(self, x, labels=None):
        return {"loss": (self.layers(x) - 1).square().mean()}


class Data(torch.utils.data.Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        return {"x": torch.randn(12, generator=torch.Generator().manual_seed(index)), "labels": 0}


class RaiseAt(TrainerCallback):
    def __init__(self, step, error):
        self.step, self.error = step, error

    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == self.step:
            self.step = None
            raise self.error


def balance(**options):
    return SpectralBalanceCallback(LinearMap(0.5, 1.5), control=Control(ema_decay=0.5, ramp_steps=2), **options)


def trainer_of(folder, *callbacks, **arguments):
    """Two steps an epoch, three epochs."""
    arguments = transformers.TrainingArguments(
        output_dir=str(folder), per_device_train_batch_size=4, learning_rate=1e-2, use_cpu=True,
        report_to="none", disable_tqdm=True, logging_strategy="no",
        **{"num_train_epochs": 3, "save_strategy": "no"} | arguments,
    )  # fmt: skip
    return transformers.Trainer(Net(), arguments, train_dataset=Data(), callbacks=[*callbacks])


def weights(trainer):
    return torch.cat([p.detach().flatten() for p in trainer.model.parameters()])


def hooks_of(trainer):
    optimizer = trainer.optimizer
    optimizer = getattr(optimizer, "optimizer", optimizer)  # Accelerate's is about it
    return [*optimizer._optimizer_step_pre_hooks, *optimizer._optimizer_step_post_hooks]


def test_a_training_that_was_interrupted_is_begun_anew(tmp_path):
    callback = balance()
    trainer = trainer_of(tmp_path, callback, RaiseAt(3, KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    assert callback.balancer.history.steps == [0, 2, 4, 6]
    assert not hooks_of(trainer)


@pytest.mark.slow
def test_a_batch_that_does_not_fit_is_tried_again_smaller(tmp_path):
    callback = balance()
    error = RuntimeError("CUDA out of memory.")
    trainer = trainer_of(tmp_path, callback, RaiseAt(1, error), auto_find_batch_size=True)
    trainer.train()
    assert callback.balancer.history.steps[0] == 0
    assert callback.balancer.history.steps[-1] == trainer.state.global_step
    assert not hooks_of(trainer)


@pytest.mark.slow
def test_a_training_within_another_leaves_that_its_analyses(tmp_path):
    callback = balance()

    class Within(TrainerCallback):
        def on_step_begin(self, args, state, control, **kwargs):
            if state.global_step == 3:
                trainer_of(tmp_path, callback, num_train_epochs=1).train()

    trainer = trainer_of(tmp_path, callback, Within())
    trainer.train()
    assert callback.balancer.optimizers == [trainer.optimizer]
    assert callback.balancer.history.steps == [0, 2]  # since the second epoch's end


@pytest.mark.parametrize("step", [2, pytest.param(6, marks=pytest.mark.slow)])
def test_a_checkpoint_of_an_epochs_last_step_is_older_than_the_epochs_analysis(step, tmp_path):
    straight, resumed = balance(), balance()
    whole = trainer_of(tmp_path, straight, save_strategy="steps", save_steps=2)
    whole.train()
    other = trainer_of(tmp_path, resumed, save_strategy="steps", save_steps=2)
    other.train(resume_from_checkpoint=str(tmp_path / f"checkpoint-{step}"))
    assert resumed.balancer.history.steps == straight.balancer.history.steps == [0, 2, 4, 6]
    assert resumed.multipliers == straight.multipliers
    assert torch.equal(weights(other), weights(whole))


class FullDisk:
    def add_scalar(self, *entry):
        raise OSError(28, "No space left on device")


def test_a_writer_that_fails_is_said_once_and_the_training_goes_on(tmp_path):
    callback, plain = balance(writer=FullDisk()), balance()
    trainers = trainer_of(tmp_path, callback), trainer_of(tmp_path, plain)
    with pytest.warns(UserWarning, match="could not be written. OSError: .*No space left") as caught:
        trainers[0].train()
    trainers[1].train()
    assert len(caught) == 1
    assert torch.equal(*map(weights, trainers))
    assert callback.multipliers == plain.multipliers


@pytest.mark.slow
def test_checkpoints_hold_one_state_of_each_callback_however_many_there_were(tmp_path):
    """The Trainer appends, so that there are those of the checkpoint before besides."""
    both = balance(), balance(key="weight_decay")
    trainer_of(tmp_path, *both, save_strategy="steps", save_steps=1).train()
    state = json.loads((tmp_path / "checkpoint-5" / "trainer_state.json").read_text())
    keys = [entry["attributes"]["key"] for entry in state["stateful_callbacks"]["SpectralBalanceCallback"]]
    assert keys == ["lr", "weight_decay"] * 2


def test_two_callbacks_that_adjust_the_same_are_refused(tmp_path):
    with pytest.raises(RuntimeError, match="at most one scaling of 'lr' on an optimizer"):
        trainer_of(tmp_path, balance(), balance()).train()


class Writer:
    def add_scalar(self, *entry):
        """Take it."""


@pytest.mark.parametrize(
    "which", [slice(20, None, 60), pytest.param(slice(0, None), marks=pytest.mark.slow)], ids=["some", "all"]
)
def test_a_fault_in_any_function_is_said_once_and_stops_nothing(which, tmp_path):
    with counted() as reached:
        trainer_of(tmp_path, balance(writer=Writer()), save_strategy="epoch").train()
    rooms = "lightning_farms.balancing", "lightning_farms.integrations.transformers"
    found = [f for f in functions(*rooms).values() if f.__code__ in reached]
    found = [f for f in found if f.__qualname__ not in FIRST_STEPS + CONTAINING and f.__name__ != "__post_init__"]
    assert len(found) > 60
    wrong = []
    for function in found[which]:
        callback = SpectralBalanceCallback(SigmoidMap(), writer=Writer())
        trainer = trainer_of(tmp_path, callback, save_strategy="epoch")
        with warnings.catch_warnings(record=True) as caught, fault_in(function):
            warnings.simplefilter("always")
            trainer.train()
        said = [str(w.message) for w in caught if Fault.__name__ in str(w.message)]
        if len(said) > 1 or len(callback.multipliers) != 2 or trainer.state.global_step != 6:
            wrong.append((function.__qualname__, said, callback.multipliers))
    assert not wrong
