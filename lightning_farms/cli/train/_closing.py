"""The line that ends a training: errors of the network and the trivial predictors on flows it was not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from lightning_farms.common.quantities import counted
from lightning_farms.data.cfd_data_module import CFDDataModule

_STAGES = {"validation": "val", "test": "test"}
_PREDICTORS = {"persistence": "persistence", "drift_free": "drift-free"}


def close(trainer: Trainer, model: LightningModule, data: CFDDataModule, *, separate_test: bool) -> None:
    """Report the best checkpoint's errors on the test flows, or the last validation's if there is no separate test."""
    if trainer.fast_dev_run or trainer.interrupted:  # type: ignore[attr-defined]
        return
    if separate_test:
        best = getattr(trainer.checkpoint_callback, "best_model_path", "") or None
        trainer.test(model, datamodule=data, ckpt_path=best, verbose=False)
        _say("test", trainer, _flows(trainer.num_test_batches, trainer, data, "test_items"))
    else:
        _say("validation", trainer, _flows(trainer.num_val_batches, trainer, data, "val_items"))


def _say(name: str, trainer: Trainer, flows: int | None) -> None:
    """Report the errors, unless the trainer was told to log none or to go through no batches."""
    if f"{_STAGES[name]}/l2re" in trainer.callback_metrics:
        rank_zero_info(closing_line(name, trainer.callback_metrics, flows))


def _flows(batches: Sequence[int | float], trainer: Trainer, data: CFDDataModule, items: str) -> int | None:
    """Number of flows in the batches that are evaluated, which `limit_test_batches` and the like may reduce.

    None if other processes evaluated them and this one only started those (ddp_spawn).
    """
    limit = int(sum(batches)) * data.batch_size * trainer.world_size
    return min(getattr(data, items), limit) if batches else None


def check_before(data: CFDDataModule) -> None:
    """Check the flows of the closing test, so that their faults are reported before the training, not after it."""
    data.setup("test")
    data.check("test")


def closing_line(name: str, metrics: Mapping[str, Tensor], flows: int | None) -> str:
    """Format the errors as one line; their number of flows may be unknown.

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
    number = "" if flows is None else f" on {counted(flows, 'flow')}"
    return f"{name} L2RE {l2re:.3g} ({', '.join(trivial)}), VRMSE {vrmse:.3g}{number}"
