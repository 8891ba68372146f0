"""Lightning's averaged weights with OperatorModule, DPOT and TBSigmoid: exact, saved, evaluated and resumed."""

import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_farms.callbacks import TBSigmoid
from lightning_farms.models import DPOT
from lightning_farms.models.operator_module import OperatorModule
from tests.models.small_operators import CHANNELS, GIVEN, Fields, snapshot, trainer

DECAY = 0.7
SIZE = 8


def network():
    torch.manual_seed(0)
    return DPOT(
        img_size=SIZE, patch_size=4, in_channels=CHANNELS, in_timesteps=GIVEN, out_channels=CHANNELS, embed_dim=16,
        depth=2, n_blocks=2, modes=2, out_layer_dim=8, n_cls=2,
    )  # fmt: skip


class Seen(Callback):
    """The moving average by hand, the weights that validation used, and where the run started."""

    def __init__(self):
        self.average, self.validated, self.started_at = {}, [], None

    def on_train_start(self, trainer, pl_module):
        self.started_at = trainer.global_step

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name, value in pl_module.state_dict().items():
            old = self.average.get(name, value)  # the first update copies
            self.average[name] = DECAY * old + (1 - DECAY) * value

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        if not trainer.sanity_checking:
            self.validated.append((snapshot(pl_module), dict(self.average)))


class StopAfter(Callback):
    def __init__(self, epochs):
        self.epochs = epochs

    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch + 1 >= self.epochs


def fit(folder, callbacks, *, stop=math.inf, checkpoint=None):
    saver = ModelCheckpoint(folder, filename="{epoch}", save_top_k=-1)
    run = trainer(
        folder,
        max_epochs=3,
        logger=CSVLogger(folder),
        log_every_n_steps=1,
        enable_checkpointing=True,
        gradient_clip_val=1.0,
        callbacks=[*callbacks, StopAfter(stop), saver],
    )
    module = OperatorModule(network(), lr=0.01, noise=0.05)
    run.fit(module, datamodule=Fields(size=SIZE, train_frames=2), ckpt_path=checkpoint)
    return module


def load(path):
    return torch.load(path, weights_only=True)


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def averaging():
    return EMAWeightAveraging(decay=DECAY)


def controlled():
    return TBSigmoid(summary=False)


def test_averages_are_evaluated_saved_and_left_behind(tmp_path):
    seen = Seen()
    module = fit(tmp_path, [averaging(), seen])
    for used, average in seen.validated:
        torch.testing.assert_close(used, average)
    saved = load(tmp_path / "epoch=2.ckpt")
    torch.testing.assert_close(saved["state_dict"], seen.average)
    assert_equal(module.state_dict(), saved["state_dict"])
    name = "network.blocks.0.mlp.0.weight"
    assert not torch.equal(saved["current_model_state"][name], saved["state_dict"][name])
    frozen = [name for name in saved["state_dict"] if ".cls_head." in name]
    start = OperatorModule(network()).state_dict()
    assert frozen
    torch.testing.assert_close({n: saved["state_dict"][n] for n in frozen}, {n: start[n] for n in frozen})


def test_a_network_read_from_such_a_checkpoint_is_the_averaged_one(tmp_path):
    module = fit(tmp_path, [averaging()])
    copy = DPOT.from_checkpoint(tmp_path / "epoch=2.ckpt")
    assert copy.config == module.network.config
    assert_equal(copy.state_dict(), module.network.state_dict())


@pytest.mark.parametrize("order", [1, -1], ids=["averaging first", "control first"])
def test_the_control_acts_on_the_current_weights_as_without_averaging(tmp_path, order):
    callbacks = [averaging(), controlled()][::order]
    fit(tmp_path / "averaged", callbacks)
    alone = controlled()
    module = fit(tmp_path / "alone", [alone])
    (control,) = (callback for callback in callbacks if isinstance(callback, TBSigmoid))
    assert control.multipliers == alone.multipliers
    assert len(set(alone.multipliers.values())) > 2
    saved = load(tmp_path / "averaged" / "epoch=2.ckpt")
    assert_equal(saved["current_model_state"], module.state_dict())
    without = fit(tmp_path / "neither", [])
    name = "network.blocks.0.mlp.0.weight"
    assert not torch.equal(without.state_dict()[name], module.state_dict()[name])


@pytest.mark.parametrize("order", [1, -1], ids=["averaging first", "control first"])
def test_resumed_is_as_never_stopped(tmp_path, order):
    fit(tmp_path / "straight", [averaging(), controlled()][::order])
    fit(tmp_path / "resumed", [averaging(), controlled()][::order], stop=2)
    seen = Seen()
    fit(
        tmp_path / "resumed",
        [*[averaging(), controlled()][::order], seen],
        checkpoint=tmp_path / "resumed" / "epoch=1.ckpt",
    )
    assert seen.started_at == 8
    straight, resumed = (load(tmp_path / which / "epoch=2.ckpt") for which in ("straight", "resumed"))
    for key in ("state_dict", "current_model_state", "averaging_state"):
        assert_equal(resumed[key], straight[key])
    optimizers = [saved["optimizer_states"][0]["state"] for saved in (resumed, straight)]
    torch.testing.assert_close(*optimizers, rtol=0, atol=0)
