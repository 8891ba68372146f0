"""ImageClassifier against NumPy, scikit-learn and the closed form of its schedule, and as it learns digits."""

import math

import numpy as np
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Callback, Trainer
from scipy.special import log_softmax
from sklearn.metrics import accuracy_score
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lightning_farms.data import DigitsDataModule
from lightning_farms.models import ImageClassifier

NUMBER, CLASSES, BATCH = 22, 4, 8


def linear():
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(12, CLASSES))


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(NUMBER, 3, 2, 2, generator=generator)
    labels = torch.randint(CLASSES, (NUMBER,), generator=generator)
    return DataLoader(TensorDataset(images, labels), batch_size=BATCH)


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])


def trainer(**settings):
    defaults = {
        "accelerator": "cpu", "devices": 1, "max_epochs": 1, "logger": False, "enable_checkpointing": False,
        "enable_progress_bar": False, "enable_model_summary": False, "num_sanity_val_steps": 0,
    }  # fmt: skip
    return Trainer(**{**defaults, **settings})


def test_loss_and_accuracy_of_an_epoch(loader):
    module = ImageClassifier(linear())
    images, labels = (tensor.numpy() for tensor in loader.dataset.tensors)
    weight, bias = (value.detach().double().numpy() for value in module.network[1].parameters())
    logits = images.reshape(NUMBER, -1) @ weight.T + bias
    loss = -log_softmax(logits, axis=1)[np.arange(NUMBER), labels].mean()
    accuracy = accuracy_score(labels, logits.argmax(1))
    running = trainer()
    (validated,) = running.validate(module, loader, verbose=False)
    (tested,) = running.test(module, loader, verbose=False)
    assert validated == pytest.approx({"val/loss": loss, "val/accuracy": accuracy}, rel=1e-6)
    assert tested == pytest.approx({"test/loss": loss, "test/accuracy": accuracy}, rel=1e-6)
    predicted = torch.cat(running.predict(module, loader))
    assert predicted.tolist() == logits.argmax(1).tolist()


def test_the_rate_is_a_cosine_over_epochs(loader):
    rates = Rates()
    trainer(max_epochs=5, callbacks=[rates]).fit(ImageClassifier(linear(), lr=0.2), loader, loader)
    steps = math.ceil(NUMBER / BATCH)
    expected = [0.2 * (1 + math.cos(math.pi * epoch / 5)) / 2 for epoch in range(5) for _ in range(steps)]
    assert rates.rates == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("scheduler", ["cosine", "none"])
def test_a_cosine_does_not_go_on_beyond_its_end_where_its_rate_is_zero(scheduler, loader, tmp_path):
    def fit(epochs, checkpoint=None):
        rates = Rates()
        running = trainer(max_epochs=epochs, callbacks=[rates])
        running.fit(ImageClassifier(linear(), scheduler=scheduler), loader, loader, ckpt_path=checkpoint)
        return running, rates.rates

    fit(2)[0].save_checkpoint(tmp_path / "done.ckpt")
    if scheduler == "none":
        assert fit(3, tmp_path / "done.ckpt")[1] == [0.1] * math.ceil(NUMBER / BATCH)
        return
    with pytest.raises(MisconfigurationException, match=r"`cosine` to span the training's 3 epochs, .*ends after 2\."):
        fit(3, tmp_path / "done.ckpt")


def test_without_a_schedule_the_rate_is_constant(loader):
    rates = Rates()
    module = ImageClassifier(linear(), lr=0.2, scheduler="none")
    trainer(max_epochs=-1, max_steps=7, callbacks=[rates]).fit(module, loader, loader)
    assert rates.rates == [0.2] * 7


def test_a_step_is_that_of_sgd_with_momentum_and_decay(loader):
    module, other = ImageClassifier(linear(), lr=0.1, momentum=0.8, weight_decay=0.01), linear()
    trainer().fit(module, loader, loader)
    buffers = [torch.zeros_like(value) for value in other.parameters()]
    for images, labels in loader:
        other.zero_grad()
        (-torch.log_softmax(other(images), 1)[torch.arange(len(labels)), labels].mean()).backward()
        with torch.no_grad():
            for value, buffer in zip(other.parameters(), buffers, strict=True):
                buffer.mul_(0.8).add_(value.grad + 0.01 * value)
                value -= 0.1 * buffer
    for value, expected in zip(module.network.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(value, expected)


def test_what_is_logged(loader):
    running = trainer()
    running.fit(ImageClassifier(linear()), loader, loader)
    assert set(running.callback_metrics) == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}


def test_it_learns_digits():
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 6 * 6, 10))
    running = trainer(max_epochs=4)
    running.fit(ImageClassifier(network, lr=0.05), DigitsDataModule(size=8, batch_size=32, seed=0, padding=0))
    assert running.callback_metrics["val/accuracy"] > 0.9


def test_a_loss_that_is_not_finite(loader):
    network = linear()
    with torch.no_grad():
        network[1].weight.fill_(math.nan)
    with pytest.raises(FloatingPointError, match=r"not finite \(epoch 0, batch 0, .*Lower `lr` \(now 0.1\)"):
        trainer().fit(ImageClassifier(network), loader, loader)


def test_an_unlimited_training_has_no_cosine(loader):
    with pytest.raises(MisconfigurationException, match="Set the Trainer's `max_epochs`, or use scheduler `none`"):
        trainer(max_epochs=-1, max_steps=3).fit(ImageClassifier(linear()), loader, loader)


@pytest.mark.parametrize(
    ("network", "found"), [(linear().requires_grad_(False), "all 2 are frozen"), (nn.Flatten(), "it has none")]
)
def test_a_network_of_which_nothing_can_be_trained(loader, network, found):
    with pytest.raises(MisconfigurationException, match=rf"to have parameters to train .* but {found}\. Leave some"):
        trainer().fit(ImageClassifier(network), loader, loader)


def test_a_network_that_returns_no_logits(loader):
    with pytest.raises(ValueError, match=r"to return logits of shape \(8, classes\), but got \(8, 3, 2, 2\)"):
        trainer().fit(ImageClassifier(nn.Conv2d(3, 3, 1)), loader, loader)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr": 0.0}, "`lr` to be positive and finite, but got 0.0"),
        ({"lr": math.inf}, "`lr` to be positive and finite"),
        ({"momentum": 1.0}, r"`momentum` to be in \[0, 1\)"),
        ({"weight_decay": -1.0}, "`weight_decay` to be at least 0"),
        ({"scheduler": "step"}, '`scheduler` to be "cosine" or "none"'),
    ],
)
def test_settings_out_of_range(options, message):
    with pytest.raises(ValueError, match=f"Expected argument {message}"):
        ImageClassifier(linear(), **options)


def test_no_network():
    with pytest.raises(TypeError, match=r"Expected argument `network` to be a torch\.nn\.Module, but got int"):
        ImageClassifier(3)


LABELS = {
    "a class that the network lacks": (
        torch.tensor([0, 4]),
        r"in \[0, 4\), the classes of .*, but got 0 to 4",
    ),
    "an ignored one": (torch.tensor([-100, 3]), r"in \[0, 4\), .* but got -100 to 3"),
    "scores of classes": (torch.eye(4)[:2], r"int64 of shape \(batch,\), but got torch.float32 of shape \(2, 4\)"),
    "a column": (torch.tensor([[0], [1]]), r"but got torch.int64 of shape \(2, 1\)"),
    "short integers": (torch.tensor([0, 1], dtype=torch.int32), r"but got torch.int32 of shape \(2,\)"),
}


@pytest.mark.parametrize("name", LABELS)
def test_labels_that_are_no_classes_of_the_network(name):
    labels, found = LABELS[name]
    with pytest.raises(ValueError, match=found):
        ImageClassifier(linear()).validation_step((torch.zeros(2, 3, 2, 2), labels), 0)
