"""One callback object in a second Trainer, while the first one fits."""

from functools import partial

import lightning.pytorch as pl
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_farms import TempBalance


class Within(pl.Callback):
    """What is done before the second epoch of a fit."""

    def __init__(self, act):
        self.act = act

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch == 1:
            self.act()


def fit_again(trainer, model, loader):
    with pytest.raises(MisconfigurationException, match="takes part in the fit of another Trainer, which is still"):
        trainer.fit(model, loader)


def run_a_test(trainer, model, loader):
    model.test_step = lambda batch, batch_idx: None
    trainer.test(model, loader, verbose=False)


def run_a_test_that_fails(trainer, model, loader):
    model.test_step = lambda batch, batch_idx: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trainer.test(model, loader)


@pytest.mark.parametrize("use", [fit_again, run_a_test, run_a_test_that_fails])
def test_the_fit_goes_on_as_without(use, small_net, loader, make_trainer):
    weights, values = [], []
    for uses in ([], [use]):
        callback, net = TempBalance(summary=False), small_net()
        second = [partial(each, make_trainer([callback], max_epochs=1), small_net(), loader) for each in uses]
        trainer = make_trainer([callback, *map(Within, second)], max_epochs=3)
        trainer.fit(net, loader)
        assert not trainer.optimizers[0]._optimizer_step_pre_hooks
        weights.append(torch.cat([p.detach().flatten() for p in net.parameters()]))
        values.append((callback.multipliers, callback.history.epochs))
    assert torch.equal(*weights)
    assert values[0] == values[1]
