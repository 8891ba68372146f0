"""Trainings in two processes of which one diverges; each rank writes the error that it ended with. Run by the tests."""

import os
import sys
from pathlib import Path

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_farms.models.operator_module import OperatorModule
from tests.models.small_operators import Fields, Linear

RANK = int(os.environ.get("LOCAL_RANK", "0"))
EPOCH, BATCH = 1, 1  # two batches of each epoch are a rank's


class Cause(Callback):
    """Breaks something in the second process only: its loss, its data, or the gradient that it contributes."""

    def __init__(self, who):
        self.who = who

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        here = RANK == 1 and (trainer.current_epoch, batch_idx) == (EPOCH, BATCH)
        pl_module.network.break_loss = here and self.who == "loss"
        pl_module.network.break_gradient = here and self.who == "gradient"
        if here and self.who == "data":
            batch[1][0, 0, 0, 0, 0] = float("nan")


class Breakable(Linear):
    break_loss = break_gradient = False

    def forward(self, x):
        prediction = super().forward(x)
        if self.break_gradient:
            prediction.register_hook(lambda gradient: gradient * float("inf"))
        return prediction * float("nan") if self.break_loss else prediction


def fit(who, folder):
    torch.manual_seed(0)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=3,
        logger=False,
        callbacks=[Cause(who), ModelCheckpoint(folder / who, save_last=True, monitor="val/l2re")],
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(OperatorModule(Breakable(), lr=0.01), datamodule=Fields())


def main(folder):
    torch.set_num_threads(1)
    for who in ("loss", "data", "gradient"):
        try:
            fit(who, folder)
        except Exception as error:
            (folder / f"{who}{RANK}.txt").write_text(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
