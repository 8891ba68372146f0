"""Learning-rate schedules, which end with the training."""

from __future__ import annotations

import math
from typing import Literal

from lightning.pytorch import Trainer
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR

from lightning_farms.common.lightning_packages import misconfiguration

_ONE_CYCLE_DIVISOR = 1e4


def make_schedule(
    optimizer: Optimizer,
    kind: Literal["onecycle", "cosine"],
    steps: int,
    *,
    lr: float,
    warmup_fraction: float,
    cycle_momentum: bool,
) -> LRScheduler:
    r"""Build a schedule over a known number of optimizer steps.

    "onecycle" rises by half a cosine from :math:`\eta / 10^4` to :math:`\eta` and falls by another to
    :math:`\eta / 10^8`; "cosine" falls from :math:`\eta` to 0.
    """
    if kind == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    return OneCycleLR(
        optimizer,
        max_lr=lr,
        total_steps=steps,
        pct_start=_safe_warmup(warmup_fraction, steps),
        cycle_momentum=cycle_momentum,
        div_factor=_ONE_CYCLE_DIVISOR,
        final_div_factor=_ONE_CYCLE_DIVISOR,
    )


def check_resumed(trainer: Trainer, kind: str) -> None:
    """Refuse a resumed schedule that ends before the training does.

    Raises:
        MisconfigurationException: If there is one: a one-cycle would raise at its end, a cosine would rise again.
    """
    for config in trainer.lr_scheduler_configs:
        planned = trainer.max_epochs if config.interval == "epoch" else trainer.estimated_stepping_batches
        made_for = _length_of(config.scheduler)
        if planned is not None and made_for < planned:
            raise misconfiguration(
                f"Expected the resumed schedule `{kind}` to span the training's {planned:.0f} {config.interval}s, "
                f"but the checkpoint's ends after {made_for}. Keep the Trainer's `max_epochs` as it was, or start a "
                "new training from the checkpoint's weights."
            )


def _length_of(schedule: object) -> float:
    """The number of steps or epochs that a schedule was made for; infinite for other kinds of schedule."""
    if isinstance(schedule, OneCycleLR):
        return schedule.total_steps
    return schedule.T_max if isinstance(schedule, CosineAnnealingLR) else math.inf


def _safe_warmup(fraction: float, steps: int) -> float:
    """The warm-up share for OneCycleLR, moved off the value (a single step) at which that divides zero by zero."""
    return fraction * 1.001 if math.isclose(fraction * steps, 1.0) else fraction
