"""Lightning runs the training step inside `optimizer.step`; neither it nor the schedulers may meet a multiplier."""

import lightning.pytorch as pl
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from lightning_farms.optim import LayerwiseScaling


class Two(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        self.b = nn.Linear(1, 1, bias=False, dtype=torch.float64)
        self.seen, self.rates = [], []

    def training_step(self, batch, index):
        group = self.trainer.optimizers[0].param_groups[0]
        self.seen.append((group["lr"], len(group["params"])))
        self.before = (self.a.weight.item(), self.b.weight.item())
        return self.a.weight.sum() + self.b.weight.sum()

    def on_train_batch_end(self, outputs, batch, index):
        self.rates.append((self.before[0] - self.a.weight.item(), self.before[1] - self.b.weight.item()))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.125)
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Attach(pl.Callback):
    def on_fit_start(self, trainer, module):
        optimizer = trainer.optimizers[0]
        self.scaling = LayerwiseScaling(optimizer, {module.a.weight: "a", module.b.weight: "b"})
        self.scaling.multipliers = {"a": 2.0, "b": 0.5}
        self.scaling.attach()

    def on_fit_end(self, trainer, module):
        self.scaling.detach()


@pytest.mark.filterwarnings("ignore:`isinstance.treespec, LeafSpec.` is deprecated:FutureWarning")
@pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers:UserWarning")
@pytest.mark.filterwarnings("ignore:The number of training batches:UserWarning")
@pytest.mark.parametrize("accumulate", [1, 2])
def test_trainer(tmp_path, accumulate):
    module = Two()
    trainer = pl.Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
        accumulate_grad_batches=accumulate,
        callbacks=[Attach()],
    )
    # powers of two make the differences of the weights exact enough for a tight bound
    trainer.fit(module, DataLoader(torch.zeros(4, 1), batch_size=1))
    updates = [pair for pair in module.rates if any(pair)]
    assert len(updates) == 4 // accumulate
    base = [0.125 * 0.5**i for i in range(len(updates))]
    torch.testing.assert_close(torch.tensor(updates), torch.tensor([(2 * r, r / 2) for r in base]), rtol=1e-12, atol=0)
    assert {size for _, size in module.seen} == {2}
    assert [rate for rate, _ in module.seen][::accumulate] == base
