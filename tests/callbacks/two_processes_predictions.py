"""Predictions in two processes that are interrupted, and gone on with, by two and by one. Run by the tests."""

import json
import os
import sys
from pathlib import Path

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy

from lightning_farms.callbacks import PredictionWriter
from lightning_farms.data import CFDDataModule
from tests.callbacks.two_processes import PATIENCE

RANK = int(os.environ.get("LOCAL_RANK", "0"))


class Breaking(pl.LightningModule):
    """Repeats the last frame, twice as large; breaks before its `limit`-th batch."""

    def __init__(self, limit=None):
        super().__init__()
        self.gain = torch.nn.Parameter(torch.full((), 2.0))
        self.limit, self.batches = limit, 0

    def predict_step(self, batch, batch_idx):
        if self.batches == self.limit:
            raise ConnectionError
        self.batches += 1
        x, y = batch
        return self.gain * x[:, :, :, -1:].expand_as(y)


def predict(folder, name, limit=None, processes=2):
    """How many batches this process predicted."""
    module = Breaking(limit)
    strategy = DDPStrategy(process_group_backend="gloo", timeout=PATIENCE) if processes > 1 else "auto"
    trainer = pl.Trainer(
        accelerator="cpu", devices=processes, strategy=strategy, callbacks=[PredictionWriter(folder / name)],
        logger=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data = CFDDataModule(folder / "flow.hdf5", in_timesteps=3, batch_size=1)
    try:
        trainer.predict(module, datamodule=data, return_predictions=False)
    except ConnectionError:
        assert limit is not None
    return module.batches


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    counts = {"first": predict(folder, "two.hdf5", limit=1 + RANK), "rest": predict(folder, "two.hdf5")}
    counts["last"] = predict(folder, "last.hdf5")  # which one process has begun
    predict(folder, "one.hdf5", limit=2)  # one process goes on with it
    (folder / f"counts{RANK}.json").write_text(json.dumps(counts))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
