"""Two processes on the CPU: fits a model with one callback and writes what each rank ended with. Run by the tests."""

import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import lightning_farms.callbacks


class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(12, 24), nn.LayerNorm(24), nn.ReLU(), nn.Linear(24, 16))

    def training_step(self, batch, batch_idx):
        x, y = batch
        return nn.functional.mse_loss(self.layers(x), y)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def main(name: str, settings: str, folder: Path) -> None:
    torch.set_num_threads(1)
    pl.seed_everything(0)
    callback = getattr(lightning_farms.callbacks, name)(**eval(settings, {**vars(lightning_farms)}))
    data = TensorDataset(torch.randn(16, 12), torch.randn(16, 16))
    model = Net()
    trainer = pl.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=2,
        strategy="ddp_spawn",
        callbacks=[callback, Results(folder)],
        logger=CSVLogger(folder),
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    trainer.fit(model, DataLoader(data, batch_size=4))


class Results(pl.Callback):
    def __init__(self, folder):
        self.folder = folder

    def on_train_end(self, trainer, pl_module):
        callback = next(c for c in trainer.callbacks if isinstance(c, lightning_farms.SpectralMonitor))
        torch.save(
            {
                "weights": pl_module.state_dict(),
                "alphas": callback.report.alphas,
                "history": callback.history.state_dict(),
                "multipliers": getattr(callback, "multipliers", {}),
            },
            self.folder / f"rank{trainer.global_rank}.pt",
        )


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]))
