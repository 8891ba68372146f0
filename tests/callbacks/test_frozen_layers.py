"""Frozen layers cost their first analysis only, in callbacks and in plain loops; reports stay what they were."""

import pytest
import torch
from torch import nn

from lightning_farms import Balancer, SpectralMonitor, TBSigmoid, analyze
from lightning_farms.balancing import SigmoidMap
from tests.callbacks.conftest import SmallNet


class Validated(SmallNet):
    """With a step of validation, during which an analysis may run."""

    def validation_step(self, batch, batch_idx):
        return nn.functional.mse_loss(self(batch[0]), batch[1])


def cost(numbers, model):
    numbers.clear()
    analyze(model)
    return sum(numbers)


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("callback", [SpectralMonitor, TBSigmoid])
def test_in_a_trainer(callback, overlap, small_net, loader, make_trainer, decomposed):
    model, same = Validated(), small_net()
    model.conv.requires_grad_(False)
    whole, of_trained = cost(decomposed, model), cost(decomposed, nn.Sequential(same.hidden, same.head))
    decomposed.clear()
    one = callback(overlap=overlap, summary=False, esd_layers=0, figures_every_n_epochs=0)
    trainer = make_trainer([one], max_epochs=3)
    trainer.fit(model, loader, loader)
    assert sum(decomposed) == whole + (len(one.history.epochs) - 1) * of_trained
    assert list(one.report) == list(analyze(model))


def test_in_a_plain_loop(decomposed):
    model = nn.Sequential(nn.Linear(48, 48), nn.Linear(48, 32), nn.Linear(32, 32))
    model[0].requires_grad_(False)
    whole, of_trained = cost(decomposed, model), cost(decomposed, model[1:])
    optimizer = torch.optim.SGD(model[1:].parameters(), lr=0.1)
    balancer = Balancer(model, optimizer, SigmoidMap())
    decomposed.clear()
    balancer.update()
    balancer.update()
    assert sum(decomposed) == whole + of_trained
    model[0].weight.data.mul_(1.5)
    assert list(balancer.update()) == list(analyze(model))
