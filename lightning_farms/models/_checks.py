"""Checks of the modules' arguments: settings out of range, and fields that do not fit the network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from lightning_farms.common.lightning_packages import misconfiguration

_SIZES = (("img_size", 1), ("img_size", 2), ("in_timesteps", 3), ("in_channels", 4))
_AXES = ("samples", "points along X", "points along Y", "frames", "channels")


def check_network(network: object) -> None:
    """Refuse a network that is not a module."""
    if not isinstance(network, nn.Module):
        raise TypeError(f"Expected argument `network` to be a torch.nn.Module, but got {type(network).__name__}.")


def check_trainable(module: nn.Module) -> None:
    """Refuse to train a network of which nothing can be trained."""
    parameters = list(module.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        found = f"all {len(parameters)} are frozen" if parameters else "it has none"
        raise misconfiguration(
            f"Expected argument `network` to have parameters to train (with `requires_grad`), but {found}. Leave some "
            "to train, or evaluate it with `trainer.test`."
        )


def check_optimization(lr: float, betas: tuple[float, float], weight_decay: float, optimizer: str) -> None:
    """Refuse settings of the optimizer that are out of range."""
    check_rules(
        ("lr", lr, "positive and finite", 0 < lr < math.inf),
        ("betas", betas, "two numbers in [0, 1)", len(betas) == 2 and all(0 <= beta < 1 for beta in betas)),
        ("weight_decay", weight_decay, "at least 0 and finite", 0 <= weight_decay < math.inf),
        ("optimizer", optimizer, '"adam" or "adamw"', optimizer in ("adam", "adamw")),
    )


def check_regime(scheduler: str, warmup_fraction: float, noise: float, noise_seed: int) -> None:
    """Refuse settings of the schedule and of the noise that are out of range."""
    check_rules(
        ("scheduler", scheduler, '"onecycle", "cosine" or "none"', scheduler in ("onecycle", "cosine", "none")),
        ("warmup_fraction", warmup_fraction, "in [0, 1)", 0 <= warmup_fraction < 1),
        ("noise", noise, "at least 0 and finite", 0 <= noise < math.inf),
        ("noise_seed", noise_seed, "at least 0", noise_seed >= 0),
    )


def check_input(network: nn.Module, x: Tensor) -> None:
    """Refuse input frames that do not fit the network."""
    if x.ndim != 5:
        raise ValueError(
            f"Expected argument `x` to be of shape (batch, X, Y, frames, channels), but got {tuple(x.shape)}."
        )
    for attribute, axis in _SIZES:
        expected = getattr(network, attribute, None)
        if isinstance(expected, tuple):  # the sides along X and Y
            expected = expected[axis - 1]
        if isinstance(expected, int) and x.shape[axis] != expected:
            raise ValueError(
                f"Expected argument `x` to have {expected} {_AXES[axis]}, the network's `{attribute}`, but got "
                f"{x.shape[axis]} (shape {tuple(x.shape)}). Build the network or the data module with the other value."
            )


def _check_can_be_fed_back(x: Tensor, prediction: Tensor) -> None:
    """Refuse a prediction that cannot become part of the next input."""
    if prediction.ndim != 5 or _all_but_frames(prediction) != _all_but_frames(x) or not prediction.shape[3]:
        raise ValueError(
            f"Expected the network's prediction to have the input's points and channels, as in {tuple(x.shape)}, and "
            f"at least one frame, so that it can be fed back, but got {tuple(prediction.shape)}."
        )


def check_target(prediction: Tensor, y: Tensor, pushforward: bool) -> None:
    """Refuse a target that is not made up of whole predictions."""
    if prediction.ndim != 5 or y.ndim != 5 or _all_but_frames(prediction) != _all_but_frames(y):
        raise ValueError(
            f"Expected the target to have the prediction's samples, points and channels, as in "
            f"{tuple(prediction.shape)}, but got {tuple(y.shape)}."
        )
    frames = prediction.shape[3]
    if not frames or y.shape[3] % frames:
        raise ValueError(
            f"Expected the target to have a multiple of the {frames} frames that the network predicts at once, but got "
            f"{y.shape[3]}. Make `out_timesteps` of the data module and of the network equal; a training item then has "
            "`out_timesteps` times the data module's `autoregressive_steps` frames."
        )
    if pushforward and y.shape[3] == frames:
        raise ValueError(
            "Expected the target of a training with `pushforward` to span at least two predictions, but got one. Set "
            "the data module's `autoregressive_steps` to 2 or more."
        )


def _all_but_frames(fields: Tensor) -> tuple[int, ...]:
    return (*fields.shape[:3], fields.shape[4])


def check_rules(*rules: tuple[str, object, str, bool]) -> None:
    """Refuse the first argument that breaks its rule; each is given as (name, value, rule, whether it holds)."""
    for name, value, rule, holds in rules:
        if not holds:
            raise ValueError(f"Expected argument `{name}` to be {rule}, but got {value!r}.")


def advanced(window: Tensor, prediction: Tensor) -> Tensor:
    """Return the network's next input: the predicted frames are appended, and as many of the oldest dropped."""
    _check_can_be_fed_back(window, prediction)
    return torch.cat((window, prediction.to(window.dtype)), dim=3)[:, :, :, -window.shape[3] :]
