"""Stopping a training that no longer yields finite numbers, with a message that says what to do."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.nn.parameter import is_lazy

from lightning_farms.common.parameters import local
from lightning_farms.common.quantities import counted

_MOST_SKIPPED = 10


class DivergenceWatch:
    """Stops a training whose loss or weights are not finite, in all processes at once, so that none waits in vain.

    A gradient scaler skips steps whose gradients are not finite; with one, a training stops only at the tenth loss in
    a row that is not finite.
    """

    def __init__(self, lr: float) -> None:
        self._lr = lr
        self._skipped_in_a_row = 0

    def check_loss(self, module: LightningModule, loss: Tensor, batch: Iterable[Tensor], batch_idx: int) -> None:
        """Raise an error if the loss of a training step is not finite; every process has to call this."""
        batch = tuple(batch)
        finite = all_finite([loss.detach()])
        if _everywhere(module, finite):
            self._skipped_in_a_row = 0
            return
        data_finite = all_finite(batch)
        where = f"epoch {module.current_epoch}, batch {batch_idx}, process {module.global_rank}"
        if not _everywhere(module, data_finite):
            raise FloatingPointError(
                f"The data{_whose(data_finite)} hold values that are not finite ({where}). Remove or repair the "
                "affected samples."
            )
        self._skipped_in_a_row += 1
        if not _steps_are_skipped(module) or self._skipped_in_a_row >= _MOST_SKIPPED:
            self._forbid_rescue(module)
            raise FloatingPointError(
                f"The loss{_whose(finite)} is not finite ({where}), though the data are. {self._advice(module)}"
            )

    def check_weights(self, module: LightningModule) -> None:
        """Raise an error if the weights are not finite; every process has to call this."""
        if not _everywhere(module, _has_finite_weights(module)):
            self._forbid_rescue(module)
            raise FloatingPointError(f"The weights are no longer finite ({_step(module)}). {self._advice(module)}")

    def check_checkpoint(self, module: LightningModule, checkpoint: Mapping[str, Any]) -> None:
        """Raise an error if a checkpoint about to be written is not finite; every process has to call this."""
        buffers = {name for name, _ in module.named_buffers()}
        if not _everywhere(module, all_finite(_saved_tensors(checkpoint, buffers))):
            raise FloatingPointError(
                "No checkpoint was written, since the weights or the optimizer's averages are no longer finite "
                f"({_step(module)}). {self._advice(module)}"
            )

    def _forbid_rescue(self, module: LightningModule) -> None:
        """Keep checkpoint callbacks from saving broken weights in response to the exception about to be raised.

        `check_checkpoint` would refuse that too, but an error raised while the first is being handled would replace
        its message, and the loggers would not be closed.
        """
        if module._trainer is not None and not _has_finite_weights(module):
            for callback in module.trainer.checkpoint_callbacks:
                if hasattr(callback, "save_on_exception"):
                    callback.save_on_exception = False

    def _advice(self, module: LightningModule) -> str:
        return "" if module._trainer is None else _advice(module.trainer, self._lr)


def all_finite(values: Iterable[Tensor]) -> bool:
    """Whether no value is infinite or NaN; only this process's part of a sharded tensor is checked.

    The host waits once for each device.
    """
    finite: dict[torch.device, list[Tensor]] = defaultdict(list)
    for value in values:
        if not is_lazy(value):
            own = local(value)
            finite[own.device].append(torch.isfinite(own).all())
    return all(bool(torch.stack(each).all()) for each in finite.values())


def newest_checkpoint(trainer: Trainer) -> str | None:
    """The path of the newest complete checkpoint: a checkpoint callback's, or the one that the run started from."""
    paths = [
        str(getattr(callback, name, "") or "")
        for callback in trainer.checkpoint_callbacks
        # the first two are set before a file is written, and may name one that never was
        for name in ("last_model_path", "best_model_path", "_last_checkpoint_saved")
    ]
    found = [path for path in [*paths, str(trainer.ckpt_path or "")] if path and Path(path).exists()]
    return max(found, key=lambda path: Path(path).stat().st_mtime, default=None)


def _advice(trainer: Trainer, lr: float) -> str:
    path = newest_checkpoint(trainer)
    kept = "No checkpoint had been written" if path is None else f"The last good checkpoint is kept: {path}"
    clip = "none" if trainer.gradient_clip_val is None else f"{trainer.gradient_clip_val:g}"
    precision = "" if str(trainer.precision).startswith(("32", "64")) else f" in place of {trainer.precision}"
    return (
        f"{kept}. Lower `lr` (now {lr:g}), clip the gradients more tightly (the Trainer's `gradient_clip_val`, now "
        f"{clip}), or train in 32-bit precision{precision}."
    )


def _step(module: LightningModule) -> str:
    return f"epoch {module.current_epoch}, after {counted(module.global_step, 'step')}"


def _whose(own_is_fine: bool) -> str:
    return " of another process" if own_is_fine else ""


def _everywhere(module: LightningModule, decision: bool) -> bool:
    """Whether a decision is true in every process."""
    return decision if module._trainer is None else module.trainer.strategy.reduce_boolean_decision(decision)


def _has_finite_weights(module: LightningModule) -> bool:
    return all_finite(parameter.detach() for parameter in module.parameters())


def _steps_are_skipped(module: LightningModule) -> bool:
    return module._trainer is not None and getattr(module.trainer.precision_plugin, "scaler", None) is not None


def _saved_tensors(checkpoint: Mapping[str, Any], buffers: Container[str]) -> Iterator[Tensor]:
    """Yield a checkpoint's weights (with weight averaging, averaged and current ones) and its optimizers' states.

    Buffers are left out, since a mask, for example, may hold infinities.
    """
    for key in ("state_dict", "current_model_state"):
        yield from (value for name, value in checkpoint.get(key, {}).items() if name not in buffers)
    yield from _tensors(checkpoint.get("optimizer_states"))


def _tensors(nested: object) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, Mapping):
        for value in nested.values():
            yield from _tensors(value)
    elif isinstance(nested, (list, tuple)):
        for value in nested:
            yield from _tensors(value)
