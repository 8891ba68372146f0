"""Predictions that need no network, against which every error should be judged."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lightning_farms.metrics._fields import LAYOUT

_VELOCITIES = ("vx", "vy")


def persistence(given: Tensor, frames: int) -> Tensor:
    r"""Predict that nothing changes, by repeating the last given frame.

    .. math::
        \hat u_{b, x, y, t, c} = u_{b, x, y, T, c}, \qquad t > T

    Args:
        given: Given frames, (batch, X, Y, T, channels), at least one of them.
        frames: Frames to predict, at least 1.

    Returns:
        The prediction, (batch, X, Y, frames, channels), in units and dtype of ``given``; a view, not to be written to.

    Raises:
        ValueError: If ``given`` is not 5-dimensional or has no frame, or ``frames`` is below 1.

    Example:
        >>> import torch
        >>> given = torch.tensor([1.0, 3.0]).reshape(1, 1, 1, 2, 1)
        >>> persistence(given, 3).flatten()
        tensor([3., 3., 3.])
    """
    if given.ndim != 5 or given.shape[3] == 0:
        raise ValueError(
            f"Expected argument `given` to be of shape {LAYOUT} with a frame at least, but got {tuple(given.shape)}."
        )
    if frames < 1:
        raise ValueError(f"Expected argument `frames` to be at least 1, but got {frames}.")
    return given[:, :, :, -1:].expand(-1, -1, -1, frames, -1)


def drift_free(given: Tensor, frames: int, channels: Sequence[str]) -> Tensor:
    r"""Predict a gas that only drifts: the last frame's mean velocity everywhere, all other channels frozen.

    .. math::
        \hat u_{b, x, y, t, c} = \begin{cases}
            \langle u_{b, \cdot, \cdot, T, c} \rangle & c \text{ a velocity} \\
            u_{b, x, y, T, c} & \text{else}
        \end{cases}, \qquad t > T

    As it has no structure in the velocity, it is hard to beat if the frames to predict no longer resemble the given
    ones: an error as large as its then means that nothing was learnt but the drift.

    Args:
        given: Given frames, (batch, X, Y, T, channels), at least one of them.
        frames: Frames to predict, at least 1.
        channels: Name of each channel; those called "Vx" and "Vy", in upper or lower case, are velocities.

    Returns:
        The prediction, (batch, X, Y, frames, channels), in units and dtype of ``given``.

    Raises:
        ValueError: If ``given`` is not 5-dimensional or has no frame, if ``frames`` is below 1, if there is not one
            name for each channel, or if no channel is a velocity.

    Example:
        >>> import torch
        >>> given = torch.tensor([[1.0, 5.0], [3.0, 7.0]]).reshape(1, 2, 1, 1, 2)
        >>> drift_free(given, 1, ["Vx", "density"]).reshape(2, 2)
        tensor([[2., 5.],
                [2., 7.]])
    """
    frozen = persistence(given, frames)
    if len(channels) != given.shape[4]:
        raise ValueError(f"Expected argument `channels` to name {given.shape[4]} channels, but got {list(channels)}.")
    if not has_velocities(channels):
        raise ValueError(f'Expected argument `channels` to name a velocity, "Vx" or "Vy", but got {list(channels)}.')
    moving = torch.tensor([_is_velocity(name) for name in channels], device=given.device)
    return torch.where(moving, frozen.mean((1, 2), keepdim=True), frozen)


def trivial_predictions(given: Tensor, frames: int, channels: Sequence[str]) -> dict[str, Tensor]:
    """Return all trivial predictions that the channels allow, by name.

    Args:
        given: Given frames, (batch, X, Y, T, channels), at least one of them.
        frames: Frames to predict, at least 1.
        channels: Name of each channel.

    Returns:
        "persistence" and, if a channel is a velocity, "drift_free"; each (batch, X, Y, frames, channels).

    Raises:
        ValueError: As for `persistence` and `drift_free`, except that velocities may be missing.

    Example:
        >>> import torch
        >>> list(trivial_predictions(torch.ones(1, 4, 4, 2, 1), 3, ["Vx"]))
        ['persistence', 'drift_free']
        >>> list(trivial_predictions(torch.ones(1, 4, 4, 2, 1), 3, ["height"]))
        ['persistence']
    """
    predictions = {"persistence": persistence(given, frames)}
    if has_velocities(channels):
        predictions["drift_free"] = drift_free(given, frames, channels)
    return predictions


def has_velocities(channels: Sequence[str]) -> bool:
    """Return whether a channel is a velocity, so that `drift_free` applies.

    Args:
        channels: Name of each channel.

    Returns:
        Whether one is called "Vx" or "Vy", in upper or lower case.

    Example:
        >>> has_velocities(["Vx", "Vy", "density"]), has_velocities(["height"])
        (True, False)
    """
    return any(map(_is_velocity, channels))


def _is_velocity(channel: str) -> bool:
    return channel.lower() in _VELOCITIES
