"""Schedules by which sparsity grows over the epochs of a training."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from lightning_farms.common.arguments import check_at_least, check_share, check_whole


class PruningSchedule(ABC):
    """Base class of schedules: at which epochs a network is pruned, and how far. Subclass it for your own schedule."""

    @property
    @abstractmethod
    def steps(self) -> tuple[int, ...]:
        """Number of complete epochs at each step, ascending; a step comes before the next epoch's first update."""

    @abstractmethod
    def sparsity_at(self, epochs: int, sparsity: float) -> float:
        """Sparsity after the given number of complete epochs.

        Args:
            epochs: number of complete epochs.
            sparsity: sparsity of the last step.

        Returns:
            A fraction in [0, sparsity], which never falls; 0 before the first step.
        """

    def last_step(self, epochs: int) -> int | None:
        """The last step that is due after the given number of complete epochs; None if there is none.

        Example:
            >>> [Cubic(0, 10, every_n_epochs=4).last_step(epochs) for epochs in (3, 4, 7, 10, 99)]
            [None, 4, 4, 10, 10]
        """
        return max((step for step in self.steps if step <= epochs), default=None)


@dataclass(frozen=True)
class OneShot(PruningSchedule):
    """Schedule that prunes everything in one step.

    Args:
        at_epoch: number of complete epochs before the step; 0: before the first update.

    Raises:
        TypeError: ``at_epoch`` is not an integer.
        ValueError: ``at_epoch`` is negative.

    Example:
        >>> [OneShot(at_epoch=2).sparsity_at(epochs, 0.7) for epochs in range(4)]
        [0.0, 0.0, 0.7, 0.7]
    """

    at_epoch: int = 0

    def __post_init__(self) -> None:
        check_whole(at_epoch=self.at_epoch)
        check_at_least(0, at_epoch=self.at_epoch)

    @property
    def steps(self) -> tuple[int, ...]:
        """The one step."""
        return (self.at_epoch,)

    def sparsity_at(self, epochs: int, sparsity: float) -> float:
        """See the base class; 0 before the step, the full sparsity from then on."""
        return sparsity if epochs >= self.at_epoch else 0.0


@dataclass(frozen=True)
class Cubic(PruningSchedule):
    r"""Cubic schedule: fast while much can be pruned, slower towards the end, with steps that let the network recover.

    .. math:: s_t = s_f + (s_i - s_f) \left(1 - \frac{t - t_0}{t_1 - t_0}\right)^3

    with t the number of complete epochs, from ``start_epoch`` t_0 to ``end_epoch`` t_1 in steps of ``every_n_epochs``;
    the last step is at ``end_epoch``, even if ``every_n_epochs`` does not divide the distance.

    Args:
        start_epoch: t_0, number of complete epochs at the start, where the sparsity is s_i.
        end_epoch: t_1, number of complete epochs at which the final sparsity s_f is reached, above ``start_epoch``.
        every_n_epochs: number of epochs between steps.
        initial_sparsity: s_i, in [0, 1): 0, or the sparsity of a network that was pruned before.

    Raises:
        TypeError: a number of epochs is not an integer.
        ValueError: an argument is out of range.

    Example:
        >>> [round(Cubic(0, 4).sparsity_at(epochs, 0.8), 4) for epochs in range(6)]
        [0.0, 0.4625, 0.7, 0.7875, 0.8, 0.8]

    Reference:
        Zhu and Gupta, To prune, or not to prune, 2017 (arXiv 1710.01878), Equation 1.
    """

    start_epoch: int
    end_epoch: int
    every_n_epochs: int = 1
    initial_sparsity: float = 0.0

    def __post_init__(self) -> None:
        check_whole(start_epoch=self.start_epoch, end_epoch=self.end_epoch, every_n_epochs=self.every_n_epochs)
        check_at_least(0, start_epoch=self.start_epoch)
        check_at_least(self.start_epoch + 1, end_epoch=self.end_epoch)
        check_at_least(1, every_n_epochs=self.every_n_epochs)
        check_share(initial_sparsity=self.initial_sparsity)

    @property
    def steps(self) -> tuple[int, ...]:
        """Steps from ``start_epoch`` on, or from one interval later if the initial sparsity is 0, to ``end_epoch``."""
        first = self.start_epoch + (0 if self.initial_sparsity else self.every_n_epochs)
        return (*range(first, self.end_epoch, self.every_n_epochs), self.end_epoch)

    def sparsity_at(self, epochs: int, sparsity: float) -> float:
        """See the base class; the sparsity of the last step that was due."""
        if epochs >= self.end_epoch:
            return sparsity
        step = self.last_step(epochs)
        if step is None:
            return 0.0
        left = 1 - (step - self.start_epoch) / (self.end_epoch - self.start_epoch)
        return sparsity + (min(self.initial_sparsity, sparsity) - sparsity) * left**3
