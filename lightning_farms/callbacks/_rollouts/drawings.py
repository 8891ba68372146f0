"""Pictures of the rollouts of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

from lightning_farms.callbacks._rollouts.record import Errors, KeptRollout
from lightning_farms.loggers.pictures import Picture
from lightning_farms.loggers.sinks import Pixels
from lightning_farms.plotting import error_curves_figure, field_figure
from lightning_farms.plotting.pixels import pixels


class Names(NamedTuple):
    """Names of channels, and numbers and times of frames.

    Attributes:
        channels: name of each channel.
        frames: number of each predicted frame in its trajectory.
        times: time of each predicted frame; None if unknown.
    """

    channels: Sequence[str]
    frames: Sequence[int]
    times: Sequence[float] | None


@dataclass(frozen=True)
class Evaluation:
    """The results of one evaluation on one data loader, as needed for drawing.

    Args:
        stage: "val" or "test", the first part of the keys.
        suffix: last part of the keys.
        when: how long the network has been trained; "" if unknown.
        step: the step under which it is logged.
        names: names of channels and frames.
        errors: relative L2 error over all trajectories, one row per frame, one column per channel.
        trivial: {name of a trivial predictor: mean error by frame}.
        kept: the first trajectories.
        drawn: indices of the frames that were kept of each.
    """

    stage: str
    suffix: str
    when: str
    step: int
    names: Names
    errors: Errors
    trivial: Mapping[str, Sequence[float]]
    kept: Sequence[KeptRollout]
    drawn: Sequence[int]


class Earlier(NamedTuple):
    """The errors of an earlier evaluation.

    Attributes:
        when: as in :class:`Evaluation`.
        errors: one row per frame, one column per channel.
    """

    when: str
    errors: Errors


def rollout_pictures(evaluation: Evaluation, earlier: Earlier | None) -> list[Picture]:
    """List the pictures: fields of each kept trajectory and channel, and errors by frame, with `earlier` if it fits."""
    stage, suffix = evaluation.stage, evaluation.suffix
    found = [
        Picture("figure", f"{stage}/fields/{name}{_number(sample)}{suffix}", partial(_fields, evaluation, sample, i))
        for sample in range(len(evaluation.kept))
        for i, name in enumerate(evaluation.names.channels)
    ]
    return [*found, Picture("figure", f"{stage}/error_over_time{suffix}", partial(_curves, evaluation, earlier))]


def _number(sample: int) -> str:
    """Part of the key that numbers the trajectory; empty for the first."""
    return f"/{sample + 1}" if sample else ""


def _fields(evaluation: Evaluation, sample: int, channel: int) -> Pixels:
    kept, names = evaluation.kept[sample], evaluation.names
    kind = {"val": "validation", "test": "test"}[evaluation.stage]
    times = names.times
    columns = [
        f"frame {names.frames[i]}" + ("" if times is None else f"\nt = {times[i]:.4g}") for i in evaluation.drawn
    ]
    title = f"{names.channels[channel]}, {kind} trajectory {sample + 1}{_comma(evaluation.when)}"
    target, prediction = kept.target[..., channel], kept.prediction[..., channel]
    return pixels(field_figure(target, prediction, frames=columns, title=title))


def _curves(evaluation: Evaluation, earlier: Earlier | None) -> Pixels:
    names, errors = evaluation.names, evaluation.errors
    if earlier is not None and (earlier.errors == errors or _shape(earlier.errors) != _shape(errors)):
        earlier = None
    figure = error_curves_figure(
        errors,
        channels=names.channels,
        positions=names.frames if names.times is None else names.times,
        unit="frame" if names.times is None else "time t",
        before=None if earlier is None else earlier.errors,
        before_label="" if earlier is None else earlier.when,
        references={name.replace("_", "-"): values for name, values in evaluation.trivial.items()},
        title=f"Relative L2 error over the rollout{_comma(evaluation.when)}",
    )
    return pixels(figure)


def _comma(when: str) -> str:
    return f", {when}" if when else ""


def _shape(errors: Errors) -> tuple[int, int]:
    return len(errors), len(errors[0])
