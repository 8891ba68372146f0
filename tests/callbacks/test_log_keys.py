"""The keys of what is logged: none is the beginning of another's, which file stores take for a file and a folder."""

import pytest
import torch
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger

from lightning_farms import LayerwisePruning, TBSigmoid, TempBalance, WeightDecayBalance, WholeMatrix


@pytest.mark.parametrize(
    "callbacks",
    [
        [TempBalance(summary=False)],
        [
            TBSigmoid(summary=False),
            LayerwisePruning(summary=False),
            WeightDecayBalance(analysis=WholeMatrix(), summary=False),
        ],
    ],
)
def test_no_key_begins_another(small_net, loader, make_trainer, logged, tmp_path, callbacks):
    callbacks = [LearningRateMonitor(log_weight_decay=True), *callbacks]
    trainer = make_trainer(callbacks, logger=CSVLogger(tmp_path), max_epochs=2, log_every_n_steps=1)
    trainer.fit(small_net(make_optimizer=lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1)), loader)
    keys = logged(trainer).keys()
    assert {"lr-AdamW", "layer_lr/AdamW/head"} <= keys
    assert [(key, other) for key in keys for other in keys if other.startswith(f"{key}/")] == []
