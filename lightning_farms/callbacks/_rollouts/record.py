"""Record of a module's rollouts over one evaluation: errors, and a few frames of the first trajectories."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor
from torchmetrics import Metric

from lightning_farms.common.evaluation_shares import own_items
from lightning_farms.metrics.trivial_predictors import trivial_predictions

_AXES = "(batch, X, Y, frames, channels)"


class Rollouts(NamedTuple):
    """The rollouts that a validation or test step returns.

    Attributes:
        prediction: predicted frames, (batch, X, Y, frames, channels).
        target: true frames, of the same shape.
        given: number of given frames, which precede them.
        last: the last given frame, (batch, X, Y, 1, channels); None if there is none that fits the target.
    """

    prediction: Tensor
    target: Tensor
    given: int
    last: Tensor | None = None


class KeptRollout(NamedTuple):
    """A few frames of a trajectory, on the host.

    Attributes:
        prediction: predicted frames, (X, Y, frames, channels), float32.
        target: true frames, of the same shape.
    """

    prediction: Tensor
    target: Tensor


Errors: TypeAlias = list[list[float]]  # one row per frame, one column per channel


def rollouts_of(outputs: object) -> Rollouts | str:
    """Read a step's output; if it is no mapping with a suitable "prediction" and "target", say in words what it is.

    Example:
        >>> fields = torch.ones(2, 8, 8, 3, 4)
        >>> rollouts_of({"given": fields, "prediction": fields, "target": fields}).given
        3
        >>> rollouts_of(None)
        'None'
    """
    if not isinstance(outputs, Mapping):
        return "None" if outputs is None else f"a {type(outputs).__name__}"
    prediction, target, given = (outputs.get(name) for name in ("prediction", "target", "given"))
    if not isinstance(prediction, Tensor) or not isinstance(target, Tensor):
        return f"a mapping with the keys {list(outputs)}"
    fields = prediction.ndim == 5 and prediction.numel() and prediction.shape == target.shape
    if not fields or not prediction.is_floating_point() or not target.is_floating_point():
        return f"{prediction.dtype} of shape {tuple(prediction.shape)} and {target.dtype} of {tuple(target.shape)}"
    if not isinstance(given, Tensor) or given.ndim != 5:
        return Rollouts(prediction.detach(), target.detach(), 0)
    last = given[:, :, :, -1:].detach()
    fits = last[:, :, :, 0].shape == target[:, :, :, 0].shape
    return Rollouts(prediction.detach(), target.detach(), given.shape[3], last if fits else None)


def expected_outputs(step: str, got: str) -> str:
    """Return the message that a step's output is not as expected."""
    return (
        f"RolloutMonitor expected `{step}` to return a mapping with the tensors 'prediction' and 'target' of shape "
        f"{_AXES}, but got {got}. Nothing is drawn. Return them, as OperatorModule does, or leave the callback out."
    )


class RolloutRecord:
    """Errors and the first trajectories of one evaluation on one data loader.

    Attributes:
        kept: the first trajectories.
        drawn: indices of the frames that are kept of each.
        given: number of frames that precede the predicted ones.
    """

    def __init__(self, metric: Metric, samples: int, columns: int, names: Callable[[int], Sequence[str]]) -> None:
        self.kept: list[KeptRollout] = []
        self.drawn: list[int] = []
        self.given = 0
        self._metric = metric
        self._trivial: dict[str, Metric] = {}
        self._fresh = metric.clone()
        self._names = names  # function of the number of channels
        self._samples, self._columns = samples, columns
        self._seen = 0
        self._shape: torch.Size | None = None

    def add(self, rollouts: Rollouts, loader: object) -> bool:
        """Add a batch; if its number of frames or channels is not that of the first, add nothing and return False."""
        prediction, target, given, _ = rollouts
        own = own_items(loader, self._seen, len(target))
        self._seen += len(target)
        self._shape = self._shape or target.shape[3:]
        if target.shape[3:] != self._shape:
            return False
        self.given = given
        if own:
            self._metric.update(prediction[:own], target[:own])
        self._add_trivial(rollouts, own)
        self.drawn = spread(target.shape[3], self._columns)
        for index in range(min(len(target), self._samples - len(self.kept))):
            fields = (field[index][:, :, self.drawn].to("cpu", torch.float32) for field in (prediction, target))
            self.kept.append(KeptRollout(*fields))
        return True

    def _add_trivial(self, rollouts: Rollouts, own: int) -> None:
        target = rollouts.target
        if rollouts.last is None:
            return
        predictions = trivial_predictions(rollouts.last, target.shape[3], self._names(target.shape[4]))
        for name, prediction in predictions.items():
            metric = self._trivial.setdefault(name, self._fresh.clone())  # on every process, even one without items
            if own:
                metric.update(prediction[:own], target[:own])

    def errors(self) -> Errors:
        """Return the errors over all processes' trajectories; a collective; raises a ValueError if shapes differ."""
        errors: Errors = self._metric.compute().tolist()
        return errors

    def trivial_errors(self) -> dict[str, list[float]]:
        """Return the errors of trivial predictors by frame, mean over channels; a collective."""
        return {name: metric.compute().mean(-1).tolist() for name, metric in self._trivial.items()}


def spread(length: int, number: int) -> list[int]:
    """Return up to `number` indices, evenly spread from the first to the last.

    Example:
        >>> spread(11, 5), spread(3, 5), spread(4, 1)
        ([0, 2, 5, 8, 10], [0, 1, 2], [3])
    """
    if number >= length:
        return list(range(length))
    if number == 1:
        return [length - 1]
    return [round(i * (length - 1) / (number - 1)) for i in range(number)]
