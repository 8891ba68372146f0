"""One analysis at one moment: asked for once, timed, and kept for all callbacks that want the same."""

from __future__ import annotations

import time
from typing import NamedTuple

import torch
from lightning.pytorch import LightningModule, Trainer

from lightning_farms.analysis import SpectralReport
from lightning_farms.callbacks._spectral.background import BackgroundAnalysis
from lightning_farms.callbacks._spectral.question import Question, attempt
from lightning_farms.callbacks._spectral.schedule import Moment


class Measurement(NamedTuple):
    """What an analysis found.

    Attributes:
        moment: when it was made.
        outcome: the report, or what went wrong.
        seconds: for which the training waited.
    """

    moment: Moment
    outcome: SpectralReport | str
    seconds: float


class _UnderWay(NamedTuple):
    """An analysis in a thread: of the weights at which moment, and how long it took to start it."""

    moment: Moment
    analysis: BackgroundAnalysis
    seconds: float


class Measurements:
    """Takes analyses, one a moment, and keeps the last.

    Attributes:
        last: the last one, None before the first.
    """

    def __init__(self) -> None:
        self.last: Measurement | None = None
        self._under_way: _UnderWay | None = None

    def take(
        self, question: Question, trainer: Trainer, pl_module: LightningModule, now: Moment, workspace: int
    ) -> Measurement:
        """The analysis at this moment, made unless it has been; a collective.

        Args:
            question: what is asked.
            trainer: the Trainer.
            pl_module: the model.
            now: the moment.
            workspace: bytes for the analysis.

        Returns:
            The measurement, with the same outcome on every rank.
        """
        if self.last is not None and self.last.moment == now:
            return self.last
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)  # so that the time is the analysis's own
        started = time.perf_counter()
        if self._under_way is not None and self._under_way.moment == now:
            outcome = attempt(self._under_way.analysis.report)
            started -= self._under_way.seconds
            self._under_way = None
        else:
            outcome = question.ask(trainer, pl_module, workspace)
        self.last = Measurement(now, outcome, time.perf_counter() - started)
        return self.last

    def start(self, question: Question, pl_module: LightningModule, now: Moment, workspace: int) -> None:
        """Start the analysis of this moment's weights in a thread.

        Where the weights cannot be copied nothing is started, and :meth:`take` says what is wrong.

        Args:
            question: what is asked.
            pl_module: the model.
            now: the moment for which it is made.
            workspace: bytes for the analysis.
        """
        self.drop()
        started = time.perf_counter()
        analysis = question.ask_in_background(pl_module, workspace)
        if analysis is not None:
            self._under_way = _UnderWay(now, analysis, time.perf_counter() - started)

    def drop(self) -> None:
        """Leave no thread behind."""
        if self._under_way is not None:
            self._under_way.analysis.close()
            self._under_way = None
