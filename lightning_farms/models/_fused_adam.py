"""Adam that updates all parameters in one call, where PyTorch supports it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torch.nn import Parameter
from torch.optim import Adam, AdamW


def make_adam(kind: type[Adam] | type[AdamW], params: Iterable[Parameter], *, fused: bool, **options: Any) -> Adam:  # noqa: ANN401
    """Build the optimizer, fused if asked for and if PyTorch supports it for the parameters' devices and dtypes."""
    params = list(params)
    if fused and _works(kind, {(p.device, p.dtype) for p in params}):
        options["fused"] = True
    return kind(params, **options)


def _works(kind: type[Adam] | type[AdamW], places: Iterable[tuple[torch.device, torch.dtype]]) -> bool:
    """Try a step for each device and dtype, as PyTorch refuses only then, and only because of the first parameter."""
    for device, dtype in places:
        try:
            number = Parameter(torch.zeros(1, device=device, dtype=dtype))
            number.grad = torch.zeros_like(number)
            kind([number], fused=True).step()
        except RuntimeError:
            return False
    return True


def may_fuse(trainer: Trainer | None) -> bool:
    """Whether this Trainer allows a fused optimizer: Lightning's mixed precision refuses to clip its gradients."""
    if trainer is None or not str(trainer.precision).endswith("-mixed"):
        return True
    return trainer.precision != "16-mixed" and not trainer.gradient_clip_val  # a gradient scaler: modules clip by hand
