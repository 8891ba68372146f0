"""Helpers that all errors of predicted fields share: checks, precision, and means over frames and channels."""

from __future__ import annotations

import functools
from typing import Literal, get_args

import torch
from torch import Tensor

Per = Literal["channel", "frame", "frame_and_channel"]
"""What an error is given for: each channel, each frame, or each channel of each frame."""

_SLAB_ELEMENTS = 2**18
LAYOUT = "(batch, X, Y, frames, channels)"


def check_fields(prediction: Tensor, target: Tensor) -> None:
    """Refuse arguments for which the errors are not defined."""
    for name, value in (("prediction", prediction), ("target", target)):
        if not isinstance(value, Tensor) or not value.is_floating_point():
            kind = value.dtype if isinstance(value, Tensor) else type(value).__name__
            raise TypeError(f"Expected argument `{name}` to be a real floating-point tensor, but got {kind}.")
    if target.ndim != 5 or target.numel() == 0:
        raise ValueError(
            f"Expected argument `target` to be non-empty and of shape {LAYOUT}, but got {tuple(target.shape)}."
        )
    if prediction.shape != target.shape:
        raise ValueError(
            f"Expected argument `prediction` to be of the target's shape {tuple(target.shape)}, "
            f"but got {tuple(prediction.shape)}."
        )


def check_eps(eps: float) -> None:
    """Refuse an `eps` that is not positive."""
    if not eps > 0:
        raise ValueError(f"Expected argument `eps` to be positive, but got {eps}.")


def check_per(per: Per | None) -> None:
    """Refuse values of `per` other than None and those of `Per`."""
    if per is not None and per not in get_args(Per):
        raise ValueError(f"Expected argument `per` to be None or one of {get_args(Per)}, but got {per!r}.")


def at_least_float32(prediction: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Convert both fields to the wider of their dtypes, but at least to float32."""
    dtype = torch.promote_types(torch.promote_types(prediction.dtype, target.dtype), torch.float32)
    return prediction.to(dtype), target.to(dtype)


def norm(values: Tensor, dim: tuple[int, ...], *, keepdim: bool = False) -> Tensor:
    """Euclidean norm over dimension 1 and others, in the dtype for sums (the float32 square of 1e20 is infinite).

    It is computed slab by slab, so that the values in that dtype stay in the processor's cache:
    `torch.linalg.vector_norm` takes three to seven times as long.
    """
    dtype = accumulation_dtype(values.device)
    slabs = values.split(max(1, _SLAB_ELEMENTS // values[:, 0].numel()), dim=1)
    squares = (slab.to(dtype).square().sum(dim, keepdim=keepdim) for slab in slabs)
    return root(functools.reduce(torch.add, squares))


def accumulation_dtype(device: torch.device) -> torch.dtype:
    """The dtype for sums of many numbers: float64, or float32 on a device that lacks it (MPS)."""
    return torch.float32 if device.type == "mps" else torch.float64


def average(values: Tensor, per: Per | None) -> Tensor:
    """Average (..., frames, channels) over frames and channels, except those that `per` asks to keep apart."""
    if per == "frame_and_channel":
        return values
    if per is None:
        return values.mean((-2, -1))
    return values.mean(-2 if per == "channel" else -1)


def root(values: Tensor) -> Tensor:
    """Square root whose derivative at zero is defined as zero, so that a perfect prediction has a gradient."""
    positive = values > 0
    return torch.where(positive, torch.where(positive, values, 1.0).sqrt(), values.detach())
