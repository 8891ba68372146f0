"""Adam in one call: where PyTorch has it; a run that was begun without it goes on without it, bit for bit."""

import pytest
import torch
from lightning.pytorch import Trainer
from lightning.pytorch.plugins import MixedPrecision
from torch import nn

from lightning_farms import TBSigmoid
from lightning_farms.models.operator_module import OperatorModule
from tests.models.small_operators import CHANNELS, GIVEN, Fields, trainer


class Small(nn.Module):
    """A network of two layers that are large enough to have an alpha."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(
            nn.Linear(GIVEN * CHANNELS, 24), nn.Tanh(), nn.Linear(24, 24), nn.Linear(24, CHANNELS)
        )

    def forward(self, x):
        return self.body(x.flatten(3))[:, :, :, None]


def is_fused(module):
    module.scheduler = "none"
    return module.configure_optimizers().defaults["fused"]


@pytest.mark.parametrize("kind", ["adam", "adamw"])
def test_fused_unless_it_is_switched_off(kind):
    assert is_fused(OperatorModule(Small(), optimizer=kind)) is True
    assert not is_fused(OperatorModule(Small(), optimizer=kind, fused=False))


def test_parameters_that_pytorch_refuses_are_updated_in_the_other_way():
    network = Small()
    network.filter = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    module = OperatorModule(network)
    assert not is_fused(module)
    assert len(module.configure_optimizers().param_groups[0]["params"]) == 7


def test_not_under_a_gradient_scaler_with_which_lightning_cannot_clip():
    module = OperatorModule(Small())
    plugin = MixedPrecision("16-mixed", "cpu")
    module.trainer = Trainer(accelerator="cpu", plugins=[plugin], logger=False, enable_checkpointing=False)
    assert not is_fused(module)


def fit(folder, module, epochs, callbacks=(), **options):
    run = trainer(folder, max_epochs=epochs, callbacks=list(callbacks), enable_checkpointing=False)
    run.fit(module, datamodule=Fields(), **options)
    return run


def weights(module):
    return torch.cat([p.detach().flatten() for p in module.parameters()])


@pytest.mark.filterwarnings("ignore:TBSigmoid has no logger")
@pytest.mark.parametrize("begun_fused", [False, True])
@pytest.mark.parametrize("balanced", [False, True])
def test_a_resumed_run_goes_on_as_it_was_begun(tmp_path, begun_fused, balanced):
    """Also one begun by a version that had no such option: its checkpoint says how, not the module."""

    def callbacks():
        return [TBSigmoid(summary=False)] if balanced else []

    straight = OperatorModule(Small(), scheduler="none", fused=begun_fused)
    fit(tmp_path, straight, 3, callbacks())
    module = OperatorModule(Small(), scheduler="none", fused=begun_fused)
    run = fit(tmp_path, module, 1, callbacks())
    run.save_checkpoint(tmp_path / "saved.ckpt")
    resumed = OperatorModule(Small(), scheduler="none")
    run = fit(tmp_path, resumed, 3, callbacks(), ckpt_path=tmp_path / "saved.ckpt")
    assert bool(run.optimizers[0].param_groups[0]["fused"]) is begun_fused
    assert torch.equal(weights(resumed), weights(straight))
    other = OperatorModule(Small(), scheduler="none", fused=not begun_fused)
    fit(tmp_path, other, 3, callbacks())
    torch.testing.assert_close(weights(other), weights(straight), rtol=1e-4, atol=1e-5)
