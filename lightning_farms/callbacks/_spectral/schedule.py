"""Schedule of analyses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from lightning.pytorch import Trainer

from lightning_farms.common.arguments import check_at_least, check_whole


class Moment(NamedTuple):
    """A point between two updates."""

    epochs: int  # complete epochs
    step: int  # optimizer steps taken

    @classmethod
    def now(cls, trainer: Trainer) -> Moment:
        """The present moment; a running epoch does not count."""
        return cls(trainer.current_epoch, trainer.global_step)

    @classmethod
    def batch_end(cls, trainer: Trainer) -> Moment:
        """The present moment, after a batch; if it was the epoch's last, the epoch counts."""
        return cls(trainer.current_epoch + int(trainer.fit_loop.epoch_loop._is_training_done), trainer.global_step)

    @classmethod
    def epoch_end(cls, trainer: Trainer) -> Moment:
        """The present moment, at the end of the running epoch, which counts."""
        return cls(trainer.current_epoch + 1, trainer.global_step)


@dataclass(frozen=True)
class Schedule:
    """Schedule: first after ``start_epoch`` epochs, then after every n-th epoch from there, or after every n-th step.

    Example:
        >>> schedule = Schedule(every_n_epochs=5, start_epoch=2)
        >>> [epoch for epoch in range(13) if schedule.is_due(Moment(epoch, 0), Moment(epoch - 1, 0))]
        [2, 7, 12]
    """

    every_n_epochs: int = 1
    every_n_steps: int | None = None
    start_epoch: int = 0

    def __post_init__(self) -> None:
        intervals = {"every_n_epochs": self.every_n_epochs}
        if self.every_n_steps is not None:
            intervals["every_n_steps"] = self.every_n_steps
        check_whole(**intervals, start_epoch=self.start_epoch)
        check_at_least(1, **intervals)
        check_at_least(0, start_epoch=self.start_epoch)

    def is_due(self, now: Moment, last: Moment | None) -> bool:
        """Whether an analysis has become due since the last one; ``last`` is None if there was none."""
        if now.epochs < self.start_epoch:
            return False
        if last is None or last.epochs < self.start_epoch:
            return True
        if self.every_n_steps is not None:
            return now.step // self.every_n_steps > last.step // self.every_n_steps
        return self._interval(now) > self._interval(last)

    def _interval(self, moment: Moment) -> int:
        return (moment.epochs - self.start_epoch) // self.every_n_epochs
