"""Rates that updates do not use: said once, in the closing table and in the loggers; base rates go on."""

import types

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils.data import DataLoader

from lightning_farms import TempBalance


class Net(pl.LightningModule):
    def __init__(self, patched):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(*(nn.Linear(16, n) for n in (16, 16, 12)))
        self.patched = patched

    def training_step(self, batch, batch_idx):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if self.patched:
            optimizer.step = types.MethodType(torch.optim.SGD.step.__wrapped__, optimizer)
        return optimizer


def fit(folder, callbacks, module=None, **settings):
    module = module or Net(patched=True)
    trainer = pl.Trainer(
        accelerator="cpu", max_epochs=3, logger=TensorBoardLogger(folder), enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=callbacks, log_every_n_steps=1,
        **settings,
    )  # fmt: skip
    trainer.fit(module, DataLoader(torch.ones(16, 16), batch_size=4))
    events = EventAccumulator(trainer.logger.log_dir)
    events.Reload()
    return torch.cat([p.detach().flatten() for p in module.parameters()]), events


def test_it_is_said_and_the_training_is_that_without(tmp_path, capfd):
    callback = TempBalance(0.5, 1.5)
    with pytest.warns(UserWarning, match="TempBalance: the layer-wise learning rate is not in force: SGD: the weights"):
        trained, events = fit(tmp_path / "with", [callback])
    assert torch.equal(trained, fit(tmp_path / "without", [])[0])
    assert "farms/not_in_force/text_summary" in events.Tags()["tensors"]
    assert [event.value for event in events.Scalars("layer_lr/SGD/net.0")][-1] == pytest.approx(0.1)
    table = capfd.readouterr().out
    assert "learning rates not in force: SGD" in " ".join(table.split())


class OnASphere(Net):
    def on_train_batch_end(self, *args):
        with torch.no_grad():
            for layer in self.net:
                layer.weight.copy_(nn.functional.normalize(layer.weight, dim=1))


def test_weights_that_the_module_moves_between_steps_condemn_no_optimizer(tmp_path):
    callback = TempBalance(0.5, 1.5)
    fit(tmp_path, [callback], OnASphere(patched=False), accumulate_grad_batches=4)
    assert len(callback.multipliers) == 3
    assert not any("not in force" in remark for remark in callback.remarks())


class AccumulatedByHand(OnASphere):
    def __init__(self, patched):
        super().__init__(patched)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        self.manual_backward(super().training_step(batch, batch_idx) / 4)
        if batch_idx % 4 == 3:
            optimizer.step()
            optimizer.zero_grad()


def test_nor_while_their_gradients_are_accumulated_by_hand(tmp_path):
    callback = TempBalance(0.5, 1.5)
    fit(tmp_path, [callback], AccumulatedByHand(patched=False))
    assert len(callback.multipliers) == 3
    with pytest.warns(UserWarning, match="the layer-wise learning rate is not in force: SGD: the weights"):
        fit(tmp_path, [TempBalance(0.5, 1.5)], AccumulatedByHand(patched=True))


def test_nothing_is_said_where_rates_are_used(tmp_path, capfd):
    _, events = fit(tmp_path, [TempBalance(0.5, 1.5)], Net(patched=False))
    assert not [tag for tag in events.Tags()["tensors"] if "not_in_force" in tag]
    assert "not in force" not in capfd.readouterr().out
