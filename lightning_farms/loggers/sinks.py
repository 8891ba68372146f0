"""Sinks for the pictures and texts of a run: one adapter per kind of logger, created without importing its package."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from lightning.pytorch import Trainer
from numpy.typing import NDArray

from lightning_farms.common.lightning_packages import Kind, kinds
from lightning_farms.loggers.scalars import mlflow_key
from lightning_farms.plotting.log_histogram import HistogramSummary

if TYPE_CHECKING:
    from lightning.pytorch.loggers import MLFlowLogger, TensorBoardLogger
    from torch.utils.tensorboard import SummaryWriter

Pixels: TypeAlias = NDArray[np.uint8]
Layout: TypeAlias = Mapping[str, Mapping[str, Sequence[str]]]


class Sink:
    """Takes all that is logged besides scalars. The base class does nothing; subclasses override what they support."""

    def histogram(self, key: str, histogram: HistogramSummary, step: int) -> None:
        """Take a histogram."""

    def image(self, key: str, pixels: Pixels, step: int) -> None:
        """Take one of the small images that are drawn after every analysis."""

    def figure(self, key: str, pixels: Pixels, step: int) -> None:
        """Take a labelled figure, of which there are few."""

    def text(self, key: str, markdown: str, step: int) -> None:
        """Take a text."""

    def layout(self, layout: Layout) -> None:
        """Take the arrangement of scalars in charts."""


class TensorBoardSink(Sink):
    """Writes everything to a TensorBoardLogger."""

    def __init__(self, logger: TensorBoardLogger) -> None:
        self._logger = logger

    @property
    def _writer(self) -> SummaryWriter:
        writer: SummaryWriter = self._logger.experiment
        return writer

    def histogram(self, key: str, histogram: HistogramSummary, step: int) -> None:
        """Write to the Histograms tab."""
        self._writer.add_histogram_raw(_prefix(self._logger) + key, **histogram._asdict(), global_step=step)

    def image(self, key: str, pixels: Pixels, step: int) -> None:
        """Write to the Images tab."""
        self._writer.add_image(_prefix(self._logger) + key, pixels, step, dataformats="HWC")

    def figure(self, key: str, pixels: Pixels, step: int) -> None:
        """Write to the Images tab."""
        self.image(key, pixels, step)

    def text(self, key: str, markdown: str, step: int) -> None:
        """Write to the Text tab."""
        self._writer.add_text(_prefix(self._logger) + key, markdown, step)

    def layout(self, layout: Layout) -> None:
        """Write to the Custom Scalars tab, replacing the run's earlier layout."""
        start = re.escape(_prefix(self._logger))

        def multiline(patterns: Sequence[str]) -> list[object]:
            return ["Multiline", [start + pattern for pattern in patterns]]

        self._writer.add_custom_scalars(
            {
                category: {chart: multiline(patterns) for chart, patterns in charts.items()}
                for category, charts in layout.items()
            }
        )


class ImageSink(Sink):
    """Writes images to a logger with Lightning's ``log_image(key=, images=, step=)``."""

    def __init__(self, logger: Any) -> None:  # noqa: ANN401 - whatever class has that method
        self._logger = logger

    def image(self, key: str, pixels: Pixels, step: int) -> None:
        """Write to the logger's images."""
        self._logger.log_image(key=key, images=[pixels], step=step)

    def figure(self, key: str, pixels: Pixels, step: int) -> None:
        """Write to the logger's images."""
        self.image(key, pixels, step)


class WandbSink(ImageSink):
    """Writes images, histograms and texts to a WandbLogger, with the trainer's step, as for its scalars."""

    def histogram(self, key: str, histogram: HistogramSummary, step: int) -> None:
        """Write to the run's histograms."""
        import wandb

        edges = [histogram.min, *histogram.bucket_limits]
        drawn = wandb.Histogram(np_histogram=(np.array(histogram.bucket_counts), np.array(edges)))
        self._logger.log_metrics({key: drawn}, step=step)

    def text(self, key: str, markdown: str, step: int) -> None:
        """Write to a table of one cell."""
        self._logger.log_text(key=key, columns=["text"], data=[[markdown]], step=step)


class MLflowSink(Sink):
    """Writes labelled figures and texts to an MLFlowLogger, but no small images, since each waits for the server."""

    def __init__(self, logger: MLFlowLogger) -> None:
        self._logger = logger

    def figure(self, key: str, pixels: Pixels, step: int) -> None:
        """Write to the run's images."""
        self._logger.experiment.log_image(self._logger.run_id, pixels, key=self._name(key), step=step)

    def text(self, key: str, markdown: str, step: int) -> None:
        """Write to an artifact."""
        self._logger.experiment.log_text(self._logger.run_id, markdown, f"{self._name(key)}.md")

    def _name(self, key: str) -> str:
        return mlflow_key(_prefix(self._logger) + key)


def _prefix(logger: TensorBoardLogger | MLFlowLogger) -> str:
    """The prefix that the logger puts before the keys of scalars, so that the keys of pictures do not differ."""
    return f"{logger._prefix}{logger.LOGGER_JOIN_CHAR}" if logger._prefix else ""


def sinks(trainer: Trainer) -> list[Sink]:
    """The sinks for a run's pictures and texts; none on ranks other than zero."""
    if not trainer.is_global_zero:
        return []
    found = (_sink(logger) for logger in trainer.loggers)
    return [sink for sink in found if sink is not None]


_SINKS: tuple[tuple[Kind, Callable[[Any], Sink]], ...] = (
    ("loggers.TensorBoardLogger", TensorBoardSink),
    ("loggers.WandbLogger", WandbSink),
    ("loggers.MLFlowLogger", MLflowSink),
)


def _sink(logger: object) -> Sink | None:
    for kind, sink in _SINKS:
        if isinstance(logger, kinds(kind)):
            return sink(logger)
    if callable(getattr(type(logger), "log_image", None)):  # asks the class: fast_dev_run's logger has any attribute
        return ImageSink(logger)
    return None
