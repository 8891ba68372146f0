"""The line that ends a training: what the network scores beside the trivial predictors, on flows it has not seen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_farms.data.cfd_data_module import CFDDataModule

_STAGES = {"validation": "val", "test": "test"}
_PREDICTORS = {"persistence": "persistence", "drift_free": "drift-free"}


def close(trainer: Trainer, model: LightningModule, data: CFDDataModule, *, separate_test: bool) -> None:
    """Say the errors of the best checkpoint on the test flows; where these chose it, those of the last validation."""
    if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
        return
    if separate_test:
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        trainer.test(model, datamodule=data, ckpt_path=best, verbose=False)
        _say("test", trainer, data.test_items, _limit(trainer.num_test_batches, trainer, data))
    else:
        _say("validation", trainer, data.val_items, _limit(trainer.num_val_batches, trainer, data))


def _say(name: str, trainer: Trainer, flows: int, limit: int) -> None:
    """The line, unless nothing was logged: the trainer was told not to, or to go through none."""
    if f"{_STAGES[name]}/l2re" in trainer.callback_metrics:
        rank_zero_info(closing_line(name, trainer.callback_metrics, min(flows, limit)))


def _limit(batches: Sequence[int | float], trainer: Trainer, data: CFDDataModule) -> int:
    """Flows in the batches that are gone through, which `limit_test_batches` and the like may make fewer."""
    return int(sum(batches)) * data.batch_size * trainer.world_size


def check_before(data: CFDDataModule) -> None:
    """What is wrong with the flows of the closing test comes before the training, not after it."""
    data.setup("test")
    data.check("test")


def closing_line(name: str, metrics: Mapping[str, Tensor], flows: int) -> str:
    """Errors on one line.

    Example:
        >>> import torch
        >>> errors = {"l2re": 0.06, "vrmse": 0.2, "l2re_persistence": 0.3, "l2re_drift_free": 0.19}
        >>> closing_line("test", {f"test/{key}": torch.tensor(value) for key, value in errors.items()}, 20)
        'test L2RE 0.06 (persistence 0.3, drift-free 0.19), VRMSE 0.2 on 20 flows'
    """
    stage = _STAGES[name]
    trivial = [
        f"{called} {float(metrics[f'{stage}/l2re_{key}']):.3g}"
        for key, called in _PREDICTORS.items()
        if f"{stage}/l2re_{key}" in metrics
    ]
    l2re, vrmse = (float(metrics[f"{stage}/{error}"]) for error in ("l2re", "vrmse"))
    return f"{name} L2RE {l2re:.3g} ({', '.join(trivial)}), VRMSE {vrmse:.3g} on {flows} flows"
